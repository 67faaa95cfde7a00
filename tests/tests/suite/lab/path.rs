//! A path that changes during running answers: a new address, a NAT that forgets its flows, a limit
//! for large packets.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use tests::{
    lab::{Asked, Far, Lab, NAT_FORGETS_UDP, Setting, rung, seed},
    ollama::seeded_bytes,
};

use crate::PROGRAM;

/// Long enough for every answer here, also on a busy machine.
const WITHIN: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_laptop_whose_address_changes_again_and_again_loses_no_token() {
    if Lab::is_missing() {
        return;
    }
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed: seed(11), ..Setting::default() })
            .await;
    let answers = [far.ask_both(240, 1).await, far.ask_both(240, 2).await];
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        far.lab.change_address();
    }
    for answer in answers {
        answer.are_equal(WITHIN).await;
    }
    far.is_one_session();
}

#[tokio::test]
async fn an_interface_that_disappears_and_comes_back_elsewhere_loses_no_token() {
    if Lab::is_missing() {
        return;
    }
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed: seed(15), ..Setting::default() })
            .await;
    let mut answer = far.ask_both(200, 7).await;
    for (bytes, away) in [(2_000, 1), (6_000, 6)] {
        answer.tunnelled.has(bytes, WITHIN).await;
        far.lab.unplug();
        tokio::time::sleep(Duration::from_secs(away)).await;
        far.lab.plug_in();
    }
    answer.are_equal(WITHIN).await;
    far.is_one_session();
}

#[tokio::test]
async fn a_nat_that_forgets_its_flows_again_and_again_loses_no_token() {
    if Lab::is_missing() {
        return;
    }
    let far = Far::start(
        PROGRAM,
        Setting { link: rung("dsl"), seed: seed(12), nat: true, ..Setting::default() },
    )
    .await;
    let mut answer = far.ask_both(250, 3).await;
    for bytes in [2_000, 6_000, 10_000, 14_000, 18_000] {
        answer.tunnelled.has(bytes, WITHIN).await;
        far.lab.rebind_nat();
    }
    answer.are_equal(WITHIN).await;
    far.is_one_session();
}

#[tokio::test]
async fn an_idle_tunnel_keeps_its_nat_mapping_alive() {
    if Lab::is_missing() {
        return;
    }
    let far = Far::start(
        PROGRAM,
        Setting { link: rung("dsl"), seed: seed(13), nat: true, ..Setting::default() },
    )
    .await;
    tokio::time::sleep(NAT_FORGETS_UDP + Duration::from_secs(2)).await;
    far.ask_both(20, 4).await.are_equal(WITHIN).await;
    far.is_one_session();
}

#[tokio::test]
async fn a_path_that_drops_packets_above_1280_bytes_carries_answers_and_uploads() {
    if Lab::is_missing() {
        return;
    }
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed: seed(14), ..Setting::default() })
            .await;
    let answer = far.ask_both(200, 5).await;
    // By now QUIC has raised its packet size above what will pass.
    tokio::time::sleep(Duration::from_secs(2)).await;
    far.lab.set_longest_packet(1280);
    answer.are_equal(WITHIN).await;
    uploads(&far, 2 << 20).await.arrives().await;
    far.is_one_session();
}

#[tokio::test]
async fn an_upload_after_a_pause_in_which_the_path_stopped_to_carry_long_packets_arrives() {
    if Lab::is_missing() {
        return;
    }
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed: seed(17), ..Setting::default() })
            .await;
    far.ask_both(40, 5).await.are_equal(WITHIN).await;
    // The last acknowledgement is old when the upload begins.
    tokio::time::sleep(Duration::from_secs(4)).await;
    far.lab.set_longest_packet(1280);
    uploads(&far, 1 << 20).await.arrives().await;
    far.is_one_session();
}

#[tokio::test]
async fn an_upload_goes_on_after_an_outage_behind_which_only_short_packets_pass() {
    if Lab::is_missing() {
        return;
    }
    let far =
        Far::start(PROGRAM, Setting { link: rung("dsl"), seed: seed(16), ..Setting::default() })
            .await;
    let upload = uploads(&far, 8 << 20).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    far.lab.cut();
    tokio::time::sleep(Duration::from_secs(4)).await;
    far.lab.set_longest_packet(1280);
    far.lab.mend();
    upload.arrives().await;
    far.is_one_session();
}

/// An upload through the tunnel, and its hash.
struct Upload {
    answer: Asked,
    digest: String,
}

async fn uploads(far: &Far, bytes: usize) -> Upload {
    let mut upload = vec![0; bytes];
    seeded_bytes(6).fill(&mut upload);
    let digest = HEXLOWER.encode(digest(&SHA256, &upload).as_ref());
    let head = format!(
        "POST /test/sha256 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n"
    );
    Upload { answer: far.request([head.into_bytes(), upload].concat()).await, digest }
}

impl Upload {
    async fn arrives(self) {
        let ended = self.answer.ended(WITHIN).await;
        assert!(ended.text.contains(&self.digest), "{}", ended.text);
    }
}
