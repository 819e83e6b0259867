//! Near matches for words nobody knows.
//!
//! Invariant: a suggestion is always one of the candidates, and ties go to the candidate that comes first.
//! Deliberately absent: guessing at more than a few slips of the fingers; a wrong guess is worse than none.

use strsim::damerau_levenshtein;

/// Words longer than this are not compared: the comparison costs the product of the lengths.
const MAX_COMPARED_CHARACTERS: usize = 64;

/// The candidate nearest to `word`, if it is near at all.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.chars().count() > MAX_COMPARED_CHARACTERS {
        return None;
    }
    let word = word.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let lower = candidate.to_lowercase();
        let distance = damerau_levenshtein(&word, &lower);
        let is_near = distance <= allowed_slips(word.chars().count().max(lower.chars().count()));
        if is_near && best.is_none_or(|(nearest, _)| distance < nearest) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The help text for an unknown word, if there is a near match.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).filter(|candidate| *candidate != word).map(|name| format!("did you mean `{name}`?"))
}

/// The near match, or else the whole list of what would have been understood.
pub(crate) fn did_you_mean_or_list(word: &str, candidates: &[&str]) -> String {
    did_you_mean(word, candidates.iter().copied()).unwrap_or_else(|| format!("known are: {}", candidates.join(", ")))
}

fn allowed_slips(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3..=4 => 1,
        5..=7 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_a_stranger_finds_none() {
        let known = ["format", "topic", "header"];
        assert_eq!(nearest("fromat", known), Some("format"));
        assert_eq!(nearest("TOPICS", known), Some("topic"));
        assert_eq!(nearest("connector", known), None);
        assert_eq!(nearest("x", ["y"]), None);
    }

    #[test]
    fn the_first_of_equally_near_words_wins() {
        assert_eq!(nearest("ordes", ["orders", "order"]), Some("orders"));
        assert_eq!(nearest("ordes", ["order", "orders"]), Some("order"));
    }

    #[test]
    fn a_very_long_word_is_not_compared() {
        assert_eq!(nearest(&"x".repeat(1 << 20), ["format"]), None);
    }
}
