//! The structure of the source: what every file has to keep.

mod imports;
