//! The benchmark itself: what it says when it cannot measure, and that it measures.

use std::process::{Command, Output};

use serde_json::Value;

fn adit_bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit-bench"));
    command.args(args).output().expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_row_or_a_contestant_that_does_not_exist_is_told_with_those_that_do() {
    let row = adit_bench(&["--rows", "nonsense"]);
    assert_eq!(row.status.code(), Some(2));
    assert!(said(&row).contains("adit-bench --list"), "{}", said(&row));
    let peer = adit_bench(&["--peers", "nonsense"]);
    assert_eq!(peer.status.code(), Some(2));
    assert!(said(&peer).contains("adit-ssh"), "{}", said(&peer));
}

#[test]
fn the_list_names_what_is_left_out_and_measures_nothing() {
    let list = adit_bench(&["--list", "--quick", "--peers", "direct,wstunnel"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.status.success() && text.contains("loopback/download"), "{text}");
    let there = Command::new("wstunnel").arg("--version").output().is_ok();
    assert_eq!(text.contains("left out: wstunnel: `wstunnel` is not on PATH"), !there, "{text}");
}

#[test]
fn a_row_becomes_a_table_and_json() {
    let out = tempfile::tempdir().expect("a directory");
    let dir = out.path().to_str().expect("a path");
    let args = ["--quick", "--rows", "loopback/connections", "--peers", "direct,adit-http"];
    let ran = adit_bench(&[&args[..], &["--out", dir]].concat());
    assert!(ran.status.success(), "{}", said(&ran));
    let table = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(table.contains("| loopback: new connection + request p50 / p99, µs |"), "{table}");
    let json = std::fs::read(out.path().join("report.json")).expect("written");
    let json: Value = serde_json::from_slice(&json).expect("json");
    assert_eq!(json["schema"], 1);
    for contestant in json["rows"][0]["contestants"].as_array().expect("a list") {
        let p50 = contestant["figures"]["p50_us"][0].as_f64().expect("a number");
        assert!(p50 > 0.0, "{contestant}");
    }
}

#[test]
fn floods_become_a_table_and_what_must_not_be_answered_is_not() {
    if tests::lab::Lab::is_missing() {
        return;
    }
    let out = tempfile::tempdir().expect("a directory");
    let dir = out.path().to_str().expect("a path");
    let ran = adit_bench(&["floods", "--seconds", "0.2", "--out", dir]);
    assert!(ran.status.success(), "{}", said(&ran));
    let json = std::fs::read(out.path().join("floods.json")).expect("written");
    let rows: Vec<Value> = serde_json::from_slice(&json).expect("json");
    assert_eq!(rows.len(), 10, "{rows:?}");
    for row in &rows {
        let silent = row["must_be_unanswered"] == true;
        assert!(!silent || row["answered"] == 0, "{row}");
        assert_eq!(row["served_after"], true, "{row}");
        assert!(row["sent"].as_u64() > Some(0), "it was no attack: {row}");
    }
    let nonsense = adit_bench(&["floods", "--attacks", "nonsense"]);
    assert_eq!(nonsense.status.code(), Some(2));
    assert!(said(&nonsense).contains("half-open"), "{}", said(&nonsense));
}

#[test]
fn endurance_becomes_a_table_and_a_part_that_does_not_exist_is_told_with_those_that_do() {
    let out = tempfile::tempdir().expect("a directory");
    let dir = out.path().to_str().expect("a path");
    let ran = adit_bench(&["endure", "--short", "--only", "redeemers", "--out", dir]);
    assert!(ran.status.success(), "{}", said(&ran));
    let table = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        table.contains("| devices that use one code, one of them enrolled | 200 | 0 |"),
        "{table}"
    );
    let json = std::fs::read(out.path().join("endure.json")).expect("written");
    let rows: Vec<Value> = serde_json::from_slice(&json).expect("json");
    assert_eq!((rows.len(), rows[0]["count"].as_u64()), (1, Some(200)), "{rows:?}");
    let nonsense = adit_bench(&["endure", "--only", "nonsense"]);
    assert_eq!(nonsense.status.code(), Some(2));
    assert!(said(&nonsense).contains("redeemers"), "{}", said(&nonsense));
}
