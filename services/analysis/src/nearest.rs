//! The name somebody may have meant.

/// Names further away than this share of their length are no help.
const LARGEST_SHARE: usize = 3;

/// The candidate closest to `wanted`, if it is close enough to be a misspelling of it.
pub(crate) fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let longest_distance = (wanted.chars().count() / LARGEST_SHARE).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= longest_distance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_is_found_and_a_stranger_is_not() {
        let names = || ["orders", "customers"].into_iter();
        assert_eq!(nearest("ordres", names()), Some("orders"));
        assert_eq!(nearest("CUSTOMER", names()), Some("customers"));
        assert_eq!(nearest("payments", names()), None);
    }
}
