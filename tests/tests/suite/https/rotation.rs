//! A new CA, and programs that trust the old one by a file.

use tests::{cli_assert::assert_ok, ollama::Options, world::SOON};

use super::Https;

#[tokio::test]
async fn the_certificate_stays_that_of_the_old_ca_until_the_owner_ends_it() {
    let https = Https::start(Options::default(), "").await;
    let key = https.key("ci", &[]).await;
    let old = std::fs::read(&https.ca).expect("read");
    let works = || async { https.with_key(&key, "/api/version", &[]).await.status == 200 };
    assert!(works().await);
    let rotated = https.world.aditd(&["ca", "rotate"]).await;
    assert_ok(&rotated);
    assert!(rotated.stderr.contains("aditd ca show"), "{}", rotated.stderr);
    // Programs with the file of before go on. One with both certificates works now and later.
    assert!(works().await);
    let both = https.world.aditd(&["ca", "show"]).await.stdout;
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2, "{both}");
    std::fs::write(&https.ca, &both).expect("written");
    assert!(works().await);
    assert_ok(&https.world.aditd(&["ca", "retire"]).await);
    let new = https.world.aditd(&["ca", "show"]).await.stdout;
    std::fs::write(&https.ca, &new).expect("written");
    let changed = async { while !works().await {} };
    tokio::time::timeout(SOON, changed).await.expect("the certificate is of the new one");
    std::fs::write(&https.ca, &both).expect("written");
    assert!(works().await);
    std::fs::write(&https.ca, &old).expect("written");
    assert!(!works().await, "the old one counts no more");
}
