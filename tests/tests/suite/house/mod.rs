//! Rules that every source file and every document has to keep.

use std::path::{Path, PathBuf};

mod documents;
mod imports;
mod map;

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}
