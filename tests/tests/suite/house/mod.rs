//! Rules that every source file has to keep.

mod imports;
