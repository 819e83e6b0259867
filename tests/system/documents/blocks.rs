//! What stands in a Markdown document beside its prose: fenced blocks, and code within a line.
//!
//! Pure. Absent on purpose: everything else Markdown has; our documents need no more.

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// What follows the opening fence; empty where nothing does.
    pub(crate) language: String,
    /// Where it begins, counted from 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// The fenced blocks of a document, in order.
pub(crate) fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in document.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                open = Some(Block { language: language.trim().to_owned(), line: number + 1, text: String::new() });
            }
            (None, Some(block)) => {
                block.text += line;
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    blocks
}

/// Code within lines of prose.
pub(crate) fn inline_code(document: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in document.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The commands of a shell block: comments gone, lines joined that go on behind a backslash or inside quotes.
pub(crate) fn commands(block: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut command = String::new();
    for line in block.lines() {
        let is_quoted = has_open_quote(&command);
        let line = if is_quoted { line } else { without_comment(line).trim() };
        if let Some(begin) = line.strip_suffix('\\') {
            command += begin;
            continue;
        }
        command += line;
        if has_open_quote(&command) {
            command.push('\n');
        } else if !command.is_empty() {
            commands.push(std::mem::take(&mut command));
        }
    }
    assert!(command.is_empty(), "a command is not complete: {command}");
    commands
}

fn has_open_quote(text: &str) -> bool {
    text.matches('\'').count() % 2 == 1
}

fn without_comment(line: &str) -> &str {
    let comment =
        |(place, _): &(usize, &str)| line[..*place].ends_with([' ', '\t']) && !has_open_quote(&line[..*place]);
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.match_indices('#').find(comment).map_or(line, |(place, _)| &line[..place])
}

/// Whether `found` is what a document shows: `…` in it stands for anything, runs of blanks are one.
///
/// Ages in days go up every day and stand for any other. A `json` block is the whole of `found`; any other may be a
/// part of it.
pub(crate) fn shows(block: &Block, found: &str) -> bool {
    if block.language == "json" {
        let pieces: Vec<String> = block.text.split('…').map(without_blanks).collect();
        return fits(&pieces, &without_blanks(found), true);
    }
    let pieces: Vec<String> = block.text.split('…').map(plain).collect();
    fits(&pieces, &plain(found), false)
}

fn fits(pieces: &[String], mut found: &str, is_whole: bool) -> bool {
    for (number, piece) in pieces.iter().enumerate() {
        let is_last = number + 1 == pieces.len();
        let place = match found.find(piece.as_str()) {
            _ if is_whole && is_last && number > 0 => found.strip_suffix(piece.as_str()).map(str::len),
            place => place,
        };
        match place {
            Some(place) if !(is_whole && number == 0 && place > 0) => found = &found[place + piece.len()..],
            _ => return false,
        }
    }
    !is_whole || found.is_empty()
}

fn without_blanks(text: &str) -> String {
    text.split_whitespace().collect()
}

fn plain(text: &str) -> String {
    text.split_whitespace().map(|word| if is_days(word) { "AGE" } else { word }).collect::<Vec<_>>().join(" ")
}

fn is_days(word: &str) -> bool {
    word.strip_suffix('d').is_some_and(|days| !days.is_empty() && days.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(language: &str, text: &str) -> Block {
        Block { language: language.to_owned(), line: 1, text: text.to_owned() }
    }

    #[test]
    fn blocks_and_code_in_lines_are_told_apart() {
        let document = "a `cargo x` and `b`\n```sh\nls `pwd`\n```\n```\nplain\n```\n";
        let found = blocks(document);
        assert_eq!(
            found,
            [
                Block { language: "sh".to_owned(), line: 2, text: "ls `pwd`\n".to_owned() },
                Block { language: String::new(), line: 5, text: "plain\n".to_owned() },
            ]
        );
        assert_eq!(inline_code(document), ["cargo x", "b"]);
    }

    #[test]
    fn commands_are_whole_and_without_comments() {
        let text =
            "# first\nls -l   # all\ncurl -d '{\n  \"a\": \"#1\"\n}' \\\n  http://x/#y\n\nsql -c 'SELECT 1 # no'\n";
        assert_eq!(commands(text), ["ls -l", "curl -d '{\n  \"a\": \"#1\"\n}' http://x/#y", "sql -c 'SELECT 1 # no'"]);
    }

    #[test]
    fn dots_stand_for_anything_and_nothing_else_does() {
        let json = block("json", "{\"a\": 1, … \"z\": [2]}\n");
        assert!(shows(&json, "{\"a\":1,\"b\":{},\"z\":[2]}"));
        assert!(!shows(&json, "{\"a\":1,\"z\":[3]}") && !shows(&json, "x{\"a\":1,\"z\":[2]}"));
        assert!(!shows(&block("json", "{}"), "{}{}") && shows(&block("json", "{}"), "{ }\n"));
        let text = block("text", "orders  330  17d\n…\n(5 rows)\n");
        assert!(shows(&text, "head\norders 330   7846d\nmore\n(5 rows)\ntail"));
        assert!(!shows(&text, "orders 331 17d\n(5 rows)") && !shows(&text, "(5 rows)\norders 330 17d"));
    }
}
