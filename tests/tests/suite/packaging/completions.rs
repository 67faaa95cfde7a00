//! The scripts of `completions` in the shells that they are for, and the manual pages.

use std::{path::Path, process::Command};

use tests::{ollama::Options, process::Programs, skip, world::World};

use crate::PROGRAM;

/// Runs a script that completes each of `lines` (words; the last one is completed) and prints what can
/// follow, one a line. Each shell does what it does when a person presses the tab key.
fn script(shell: &str, words: &[&str]) -> String {
    let program = words[0];
    let last = words.len() - 1;
    match shell {
        "bash" => {
            let (word, before) = (words[last], words[last - 1]);
            let all = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            format!(
                "source <({program} completions bash)
                 registered=$(complete -p {program}); f=${{registered##*-F }}; f=${{f%% *}}
                 COMP_WORDS=({all}); COMP_CWORD={last}; COMP_TYPE=9
                 $f {program} '{word}' '{before}' 2>/dev/null
                 printf '%s\\n' \"${{COMPREPLY[@]}}\""
            )
        }
        "zsh" => {
            let all = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            // What zsh's completion system would do with them.
            format!(
                "compdef() {{ completer=$1 }}
                 _describe() {{ print -l -- ${{(P)3}} }}
                 source <({program} completions zsh)
                 words=({all}); CURRENT={}; $completer",
                last + 1
            )
        }
        _ => format!(
            "{program} completions fish | source; complete --do-complete '{}'",
            words.join(" ")
        ),
    }
}

fn has(shell: &str) -> bool {
    Command::new(shell).args(["-c", "exit"]).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn each_shell_completes_commands_servers_devices_roles_and_models() {
    let world = World::start_configured(
        PROGRAM,
        Options { model: "llama3.2:1b".to_owned(), ..Options::default() },
        &[],
        "[roles.guests]\nallow = ['GET /api/tags']",
    )
    .await;
    let device = world.device("thinkpad").await;
    let up = device.up(&[]).await;
    let programs = world.scratch("programs");
    std::fs::create_dir(&programs).expect("a directory");
    Programs::link(Path::new(PROGRAM), &programs).expect("linked");
    let state = |dir: &Path| dir.display().to_string();
    let (of_device, of_server) = (state(&device.dir), state(&world.state()));
    // The world's server gets its upstream as a flag.
    let upstream = format!("upstream = 'http://{}'\n", world.ollama.addr());
    let config = std::fs::read_to_string(world.config()).expect("read");
    let file = world.scratch("completed.toml");
    std::fs::write(&file, upstream + &config).expect("written");
    let config = file.display().to_string();
    let cases: [(&[&str], &str); 9] = [
        (&["adit", "statu"], "status"),
        (&["adit", "up", "--carr"], "--carrier"),
        (&["adit", "up", "--carrier", "s"], "ssh"),
        (&["adit", "up", ""], "default"),
        (&["adit", "run", "--server", "d"], "default"),
        (&["adit", "warm", "lla"], "llama3.2:1b"),
        (&["aditd", "device", "revoke", "th"], "thinkpad"),
        (&["aditd", "invite", "phone", "--role", "gu"], "guests"),
        (&["aditd", "device", "models", "thinkpad", "lla"], "llama3.2:1b"),
    ];
    for shell in ["bash", "zsh", "fish"] {
        if !has(shell) && skip::skip_test(&format!("there is no {shell}")) {
            continue;
        }
        for (words, expected) in cases {
            // The stand-in for Ollama runs in this process, meanwhile.
            let out = tokio::process::Command::new(shell)
                .args(["-c", &script(shell, words)])
                .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
                .env("ADIT_STATE_DIR", &of_device)
                .env("ADITD_STATE_DIR", &of_server)
                .env("ADITD_CONFIG", &config)
                .env("HOME", world.scratch(shell))
                .output()
                .await
                .unwrap_or_else(|e| panic!("{shell}: {e}"));
            let said = String::from_utf8_lossy(&out.stdout);
            // fish and zsh print what each one is for behind it; zsh escapes colons.
            let found = said.lines().any(|line| {
                line.replace("\\:", ":").split(['\t', ' ']).next().is_some_and(|first| {
                    first == expected || first.starts_with(&format!("{expected}:"))
                })
            });
            let errors = String::from_utf8_lossy(&out.stderr);
            assert!(found, "{shell} {words:?}: {said:?} {errors}");
        }
    }
    up.end().await;
}

#[test]
fn each_command_has_a_manual_page_that_man_can_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let manual = env!("CARGO_BIN_EXE_adit-manual");
    let made = Command::new(manual).arg(dir.path()).status().expect("it runs");
    assert!(made.success());
    for name in ["adit.1", "adit-up.1", "aditd.1", "aditd-device-revoke.1"] {
        let page = std::fs::read_to_string(dir.path().join(name)).expect(name);
        assert!(page.contains(".TH ") && page.contains(".SH "), "{name}: {page}");
    }
}

#[test]
fn the_version_names_the_commit_and_the_protocol() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["adit", "aditd"] {
        let program = dir.path().join(name);
        std::os::unix::fs::symlink(PROGRAM, &program).expect("a link");
        let out = Command::new(program).arg("--version").output().expect("it runs");
        let said = String::from_utf8_lossy(&out.stdout);
        let begins = format!("{name} {} (", env!("CARGO_PKG_VERSION"));
        assert!(said.starts_with(&begins) && said.ends_with(", protocol 1)\n"), "{said}");
    }
}
