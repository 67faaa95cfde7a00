//! Landlock: which files may be opened, and which TCP ports connected to.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};

use proto::failure::in_one_line;

use super::rules::{Right, Rules};

/// Gives up every file and every port that the rules do not name, and returns the kernel's ABI of
/// Landlock (0 if it has none). It counts for this thread, and those that it begins later.
///
/// # Errors
/// If the kernel has Landlock and refuses, in words.
pub(super) fn give_up(rules: &Rules) -> Result<u8, String> {
    restrict(rules).map_err(|e| format!("Landlock failed: {}", in_one_line(&e)))
}

fn restrict(rules: &Rules) -> Result<u8, landlock::RulesetError> {
    // The kernel knows fewer of these if it is older; what it does not know is left out. Of UDP only
    // the ports could be limited, and devices come from any.
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V9))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    for right in rules.iter() {
        ruleset = match right {
            Right::Read(path) => add(ruleset, path, read)?,
            Right::Write(path) => add(ruleset, path, write)?,
            Right::Remove(path) => add(ruleset, path, AccessFs::RemoveFile.into())?,
            Right::Connect(port) => ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?,
            // The broker connects.
            Right::Socket(_) => ruleset,
        };
    }
    let status = ruleset.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u8,
        _ => 0,
    })
}

fn add(
    ruleset: landlock::RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, landlock::RulesetError> {
    // What is not there cannot be named; what is made there later cannot be opened.
    let Ok(at) = PathFd::new(path) else { return Ok(ruleset) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V9) };
    ruleset.add_rule(PathBeneath::new(at, access))
}
