//! The files that a device and a server store: a test reads, damages or exposes them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use client::profile::{Profile, ProfileDir};
use serde_json::Value;

use crate::{
    cli_assert::assert_ok,
    world::{Device, World},
};

/// A path as an argument of a command.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// A path as a word for the shell.
pub fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// Changes the mode of a file or directory.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// The file in which a device stores its enrollment at the server `default`.
pub fn identity_file(device: &Device) -> PathBuf {
    identity_file_for(device, "default")
}

/// The content of the [`identity_file`].
pub fn stored(device: &Device) -> Value {
    read(&identity_file(device))
}

/// Replaces the [`identity_file`].
pub fn store(device: &Device, identity: &Value) {
    fs::write(identity_file(device), identity.to_string()).expect("written");
}

/// The profile as `adit` itself reads it.
pub fn profile(device: &Device) -> Profile {
    ProfileDir::new(&device.dir, "default".parse().expect("a name")).read().expect("a profile")
}

/// The device's private key, as PEM.
pub fn private_key(device: &Device) -> String {
    private_key_for(device, "default")
}

/// The private key for another server.
pub fn private_key_for(device: &Device, server: &str) -> String {
    read(&identity_file_for(device, server))["private_key"].as_str().expect("a key").to_owned()
}

fn identity_file_for(device: &Device, server: &str) -> PathBuf {
    device.dir.join("servers").join(server).join("identity.json")
}

fn read(identity_file: &Path) -> Value {
    serde_json::from_slice(&fs::read(identity_file).expect("an identity")).expect("JSON")
}

/// The enrolled devices, as `aditd device list --json` lists them.
pub async fn devices(world: &World) -> Vec<Value> {
    let listed = world.aditd(&["device", "list", "--json"]).await;
    assert_ok(&listed);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    listed["devices"].as_array().expect("devices").clone()
}

pub async fn device_names(world: &World) -> Vec<String> {
    devices(world).await.iter().map(|d| d["name"].as_str().expect("a name").to_owned()).collect()
}
