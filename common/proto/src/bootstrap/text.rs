//! A plan as people read it, before they are asked.

use super::{Install, Plan, Running, Service};
use crate::{human::size, wire::ADITD_PORT};

impl Plan {
    /// The plan as text. `device` is the name that this computer gets, unless it is enrolled already.
    pub fn text(&self, to: &str, device: Option<&str>) -> String {
        let mut steps = Vec::new();
        let mut notes = Vec::new();
        match self {
            Self::Keep { running: Some(Running { version, upstream, .. }) } => {
                steps.push(format!(
                    "keep aditd {version}, which runs there and forwards to {upstream}"
                ));
            }
            Self::Keep { running: None } => {
                steps.push(
                    "keep the aditd that runs there, and enrolls members of a group".to_owned(),
                );
            }
            Self::Install(install) => {
                steps.extend(install.upload_step());
                steps.extend(install.service_steps());
                if !install.others.is_empty() {
                    let pids: Vec<_> = install.others.iter().map(ToString::to_string).collect();
                    notes.push(format!(
                        "Another aditd runs there (pid {}), which does not answer this login. It is left alone.",
                        pids.join(", ")
                    ));
                }
                notes.push(format!(
                    "Nothing is downloaded there, and nothing else is changed. `adit remove {to}` undoes it."
                ));
            }
        }
        steps.extend(device.map(|device| format!("enroll this computer as `{device}`")));
        let mut text = format!("On {to}, adit will");
        for (number, step) in steps.iter().enumerate() {
            text += &format!("\n  {}. {step}", number + 1);
        }
        text += "\nand then open the tunnel on this computer.";
        for note in notes {
            text += &format!("\n{note}");
        }
        text
    }
}

impl Install {
    fn upload_step(&self) -> Option<String> {
        let program = short(&self.dir, &self.sha256);
        Some(match self.upload {
            Some(len) => format!("upload aditd {} ({}) to {program}", self.version, size(len)),
            None => format!("use the aditd {} in {program}, which is there already", self.version),
        })
    }

    fn service_steps(&self) -> Vec<String> {
        let port = self.listen.unwrap_or(ADITD_PORT);
        let start = format!(
            "start it: it listens on loopback only (port {port}), and forwards to Ollama at {}",
            self.upstream
        );
        let unit = self.unit_file();
        match self.service {
            Service::System => {
                vec![format!("install the systemd unit {unit}, which starts at boot"), start]
            }
            Service::User { enable_linger } => {
                let linger = match enable_linger {
                    true => {
                        " (`loginctl enable-linger`; if the box refuses that, aditd becomes a process that a reboot ends)"
                    }
                    false => "",
                };
                vec![
                    format!("install the systemd user unit {unit}, which starts at boot{linger}"),
                    start,
                ]
            }
            Service::Process => {
                vec![format!("{start}. It outlives the login, and a reboot ends it")]
            }
        }
    }
}

/// The path of the program, with a part of its hash.
pub(super) fn short(dir: &str, sha256: &str) -> String {
    format!("{dir}/bin/{}…/aditd", sha256.get(..12).unwrap_or(sha256))
}
