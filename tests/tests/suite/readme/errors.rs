//! The texts that `docs/errors.md` explains are texts that the programs say.

use std::path::Path;

const PAGE: &str = include_str!("../../../../docs/errors.md");
/// Ollama's own texts are those of its stand-in.
const SAID_IN: [&str; 4] = ["client/src", "server/src", "common", "tests/src/ollama"];

fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// The words of a text that are always the same: without the status, and cut where it has a name.
fn fixed_words(text: &str) -> Vec<&str> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    text.split('…').map(str::trim).filter(|words| words.len() > 5).collect()
}

#[test]
fn each_text_of_the_page_is_one_that_a_program_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut said = String::new();
    for dir in SAID_IN {
        sources(&root.join(dir), &mut said);
    }
    let said = said.replace("\\\n", "");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `"));
    let texts: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert!(texts.len() > 15, "{texts:?}");
    for text in texts {
        for words in fixed_words(text) {
            assert!(said.contains(words), "no program says `{words}` (of `{text}`)");
        }
    }
}
