//! Decides when a failure that repeats is logged: at once, and then rarely.

use std::time::Duration;

/// What has been logged, and when. Only the last 16 texts are remembered; a text that was forgotten
/// is logged again.
#[derive(Debug)]
pub struct Repeats {
    again_after: Duration,
    logged: Vec<(String, Duration)>,
}

impl Repeats {
    const MOST: usize = 16;

    /// The same text may be logged again after this time.
    pub const fn new(again_after: Duration) -> Self {
        Self { again_after, logged: Vec::new() }
    }

    /// Whether to log `text` at `now`, the time of a monotonic clock. If so, the text counts as
    /// logged.
    pub fn is_news(&mut self, text: &str, now: Duration) -> bool {
        self.logged.retain(|(_, at)| now.saturating_sub(*at) < self.again_after);
        if self.logged.iter().any(|(logged, _)| logged == text) {
            return false;
        }
        if self.logged.len() == Self::MOST {
            self.logged.remove(0);
        }
        self.logged.push((text.to_owned(), now));
        true
    }

    /// Forgets everything, after a success: the next failure is logged at once. Returns whether
    /// anything was logged.
    pub fn passed(&mut self) -> bool {
        let failed = !self.logged.is_empty();
        self.logged.clear();
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_logged_once_then_rarely_and_another_at_once() {
        let s = Duration::from_secs;
        let mut repeats = Repeats::new(s(600));
        for (text, at, news) in [
            ("a", 0, true),
            ("a", 1, false),
            ("b", 1, true),
            ("a", 2, false),
            ("b", 599, false),
            ("a", 600, true),
            ("b", 600, false),
            ("b", 601, true),
        ] {
            assert_eq!(repeats.is_news(text, s(at)), news, "{text} at {at}");
        }
        assert!(repeats.passed() && !repeats.passed());
        assert!(repeats.is_news("a", s(602)));
        for i in 0..100 {
            assert!(repeats.is_news(&i.to_string(), s(603)));
        }
        assert!(repeats.logged.len() <= Repeats::MOST);
    }
}
