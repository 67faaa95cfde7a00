//! A code that is pasted at a terminal with line breaks, as mail programs and chats add them: it is
//! read completely, and no part of it reaches the shell.

use tests::{terminal::Terminal, world::World};

use crate::PROGRAM;

/// `adit enroll` at a terminal, followed by a shell that prints what it would run.
fn enroll_in_a_shell(world: &World, device: &str) -> Terminal {
    let adit = world.scratch("adit");
    let state = world.scratch("devices").join(device);
    let script = "\"$0\" enroll --state-dir \"$1\"; echo \"ended with $?\"; timeout 1 sed 's/^/the shell runs: /'";
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", script]).arg(adit).arg(state);
    Terminal::run(&shell)
}

async fn pasted(world: &World, device: &str, text: &str) -> String {
    let mut terminal = enroll_in_a_shell(world, device);
    terminal.shows("Code from `aditd invite`: ").await;
    terminal.types(text).await;
    terminal.ended().await;
    let screen = terminal.screen();
    assert!(!screen.contains("the shell runs: "), "{screen}");
    screen
}

#[tokio::test]
async fn a_code_pasted_in_several_lines_is_read_to_its_end() {
    if Terminal::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let in_lines = |code: &str, at: usize, between: &str| {
        let (first, rest) = code.trim().split_at(at);
        format!("{first}{between}{rest}")
    };
    for (device, between) in [
        ("broken", "\n"),
        ("crlf", "\r\n"),
        ("quoted", "\n> "),
        ("shell", "\\\n  "),
        ("blank", "\n\n"),
    ] {
        let code = in_lines(&world.invite(device).await, 60, between);
        let screen = pasted(&world, device, &code).await;
        assert!(screen.contains("ended with 0"), "{device}: {screen}");
    }
    let code = world.invite("marks").await;
    let screen = pasted(&world, "marks", &format!("\"{}\"", code.trim())).await;
    assert!(screen.contains("ended with 0"), "{screen}");
}

#[tokio::test]
async fn the_rest_of_a_code_is_asked_for_and_no_pasted_text_reaches_the_shell() {
    if Terminal::is_missing() {
        return;
    }
    let world = World::start(PROGRAM).await;
    let code = world.invite("laptop").await;
    let (first, rest) = code.trim().split_at(60);
    let mut terminal = enroll_in_a_shell(&world, "laptop");
    terminal.shows("Code from `aditd invite`: ").await;
    terminal.types(first).await;
    terminal.shows("paste the rest").await;
    terminal.types(rest).await;
    terminal.shows("ended with 0").await;
    // An empty line ends an incomplete code.
    let mut terminal = enroll_in_a_shell(&world, "half");
    terminal.shows("Code from `aditd invite`: ").await;
    terminal.types(first).await;
    terminal.shows("paste the rest").await;
    terminal.types("").await;
    terminal.shows("the code is incomplete").await;
    // The first line has a typing error; the second is secret all the same.
    let wrong = format!("x{}\n{rest}", &first[1..]);
    let screen = pasted(&world, "wrong", &wrong).await;
    assert!(screen.contains("ended with 2"), "{screen}");
}
