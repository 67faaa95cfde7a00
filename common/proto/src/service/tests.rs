use super::*;

const UNIT: &str = "# By hand:\n#\n#   install\n\n[Unit]\nDescription=a\n\n[Service]\n# systemd looks in /usr/local/bin, then in /usr/bin.\nExecStart=adit up\nExecReload=adit reload\nRestart=on-failure\n";

fn service(manager: Manager) -> Service {
    Service {
        manager,
        program: "adit",
        name: "adit-lab".to_owned(),
        path: "/usr/bin/adit".to_owned(),
        args: vec!["up".to_owned(), "lab".to_owned()],
        unit: UNIT,
        sysusers: (manager == Manager::System).then_some("u adit -\n"),
        home: "/home/joe".to_owned(),
        user: ("joe".to_owned(), 1000),
    }
}

fn typed(steps: &[Step]) -> Vec<String> {
    steps.iter().map(Step::typed).collect()
}

#[test]
fn a_unit_is_that_of_the_packages_with_this_program() {
    let files = service(Manager::User).files().expect("a service");
    assert_eq!(files.len(), 1);
    let (path, text) = &files[0];
    assert_eq!(path, "/home/joe/.config/systemd/user/adit-lab.service");
    assert_eq!(
        text,
        "# Made by `service install`: it is written anew each time.\n\n[Unit]\nDescription=a\n\n\
         [Service]\nExecStart=/usr/bin/adit up lab\nExecReload=/usr/bin/adit reload\n\
         Restart=on-failure\n"
    );
    let of_system = service(Manager::System).files().expect("a service");
    assert_eq!(of_system[0].0, "/etc/systemd/system/adit-lab.service");
    assert_eq!(of_system[1].0, "/etc/sysusers.d/adit.conf");
    assert!(of_system.iter().all(|(_, text)| text.contains(MADE)));
}

#[test]
fn words_with_special_characters_mean_themselves_in_a_unit_a_plist_and_a_shell() {
    for (word, unit, plist, line) in [
        ("/a b", "\"/a b\"", "/a b", "'/a b'"),
        ("50%", "50%%", "50%", "'50%'"),
        ("$HOME", "$$HOME", "$HOME", "'$HOME'"),
        ("a\"b", "\"a\\\"b\"", "a\"b", "'a\"b'"),
        ("it's", "\"it's\"", "it's", "'it'\\''s'"),
        ("<&>", "<&>", "&lt;&amp;&gt;", "'<&>'"),
        ("", "\"\"", "", "''"),
    ] {
        let of = |manager| Service { args: vec![word.to_owned()], ..service(manager) };
        let text = |manager| of(manager).files().expect("a service")[0].1.clone();
        let expected = format!("ExecStart=/usr/bin/adit {unit}\n");
        assert!(text(Manager::User).contains(&expected), "{}", text(Manager::User));
        let expected = format!("<string>{plist}</string>\n  </array>");
        assert!(text(Manager::LaunchdUser).contains(&expected), "{word}");
        let expected = format!("nohup /usr/bin/adit {line} >adit-lab.log 2>&1 &");
        assert_eq!(of(Manager::User).without(), expected);
    }
    let broken = Service { path: "/a\nExecStartPre=/b".to_owned(), ..service(Manager::User) };
    assert!(matches!(broken.files(), Err(Obstacle::Unspeakable(_))));
}

#[test]
fn a_program_that_the_systems_service_cannot_see_is_refused_with_the_line_that_moves_it() {
    for (path, is_hidden) in [
        ("/home/joe/.cargo/bin/aditd", true),
        ("/root/.cargo/bin/aditd", true),
        ("/tmp/aditd", true),
        ("/usr/local/bin/aditd", false),
        ("/opt/adit/aditd", false),
        ("/homes/aditd", false),
    ] {
        let of = |manager| Service { path: path.to_owned(), program: "aditd", ..service(manager) };
        assert_eq!(of(Manager::System).files().is_err(), is_hidden, "{path}");
        assert!(of(Manager::User).files().is_ok(), "{path}");
    }
}

#[test]
fn each_manager_has_its_commands() {
    let user = service(Manager::User);
    assert_eq!(
        typed(&user.start()),
        [
            "systemctl --user daemon-reload",
            "systemctl --user enable adit-lab",
            "systemctl --user restart adit-lab",
            "loginctl enable-linger joe",
        ]
    );
    assert_eq!(typed(&user.end()), ["systemctl --user disable --now adit-lab"]);
    assert_eq!(user.command("logs"), "adit service logs --server lab");
    assert_eq!(user.stop().typed(), "systemctl --user stop adit-lab");
    assert_eq!(
        user.logs(20, true).typed(),
        "journalctl --user-unit=adit-lab --no-pager --lines=20 --quiet --follow"
    );
    let system = service(Manager::System);
    assert_eq!(
        typed(&system.start()),
        [
            "systemd-sysusers",
            "systemctl daemon-reload",
            "systemctl enable adit-lab",
            "systemctl restart adit-lab",
        ]
    );
    assert_eq!(system.probe().typed(), "systemctl show --property=Version");
    let mac = service(Manager::LaunchdUser);
    assert_eq!(
        typed(&mac.start()),
        [
            "launchctl bootout gui/1000/dev.adit.adit-lab",
            "launchctl bootstrap gui/1000 /home/joe/Library/LaunchAgents/dev.adit.adit-lab.plist",
        ]
    );
    assert_eq!(mac.logs(20, false).typed(), "tail -n 20 /home/joe/Library/Logs/adit-lab.log");
    let root = service(Manager::LaunchdSystem);
    assert_eq!(root.file(), "/Library/LaunchDaemons/dev.adit.adit-lab.plist");
    assert_eq!(root.status().typed(), "launchctl print system/dev.adit.adit-lab");
}

#[test]
fn what_ends_with_the_logout_is_said_and_a_missing_manager_is_not_a_linger_problem() {
    let steps = service(Manager::User).start();
    let said = steps.iter().filter_map(|step| match &step.if_fails {
        IfFails::Say(said) => Some(said.as_str()),
        _ => None,
    });
    let said: Vec<_> = said.collect();
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("`sudo loginctl enable-linger joe`"), "{said:?}");
}
