//! The processor that a program is for, from its ELF header.

/// The bytes of the header that are looked at.
const HEADER: usize = 20;
/// `e_machine` of the ELF header, and what `uname -m` says on such a machine.
const MACHINES: [(u16, &[&str]); 8] = [
    (62, &["x86_64", "amd64"]),
    (183, &["aarch64", "arm64"]),
    (243, &["riscv64"]),
    (40, &["armv7l", "armv6l", "arm"]),
    (3, &["i686", "i586", "i386"]),
    (21, &["ppc64le", "ppc64"]),
    (22, &["s390x"]),
    (258, &["loongarch64"]),
];

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine(u16);

impl Machine {
    /// The processor of a program for Linux; `None` if `file` does not begin like one.
    pub fn of_program(file: &[u8]) -> Option<Self> {
        let header = file.get(..HEADER)?;
        let (magic, rest) = header.split_at(4);
        let number = [header[18], header[19]];
        let number = match rest.get(1) {
            Some(1) => u16::from_le_bytes(number),
            Some(2) => u16::from_be_bytes(number),
            _ => return None,
        };
        (magic == b"\x7fELF").then_some(Self(number))
    }

    /// Whether programs for it run where `uname -m` says `uname`.
    pub fn runs_on(self, uname: &str) -> bool {
        MACHINES.iter().any(|(number, names)| *number == self.0 && names.contains(&uname))
    }

    /// Its name for people.
    pub fn name(self) -> String {
        let known = MACHINES.iter().find(|(number, _)| *number == self.0);
        known.map_or_else(|| format!("ELF machine {}", self.0), |(_, names)| names[0].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(order: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut file = b"\x7fELF".to_vec();
        file.extend([2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        file.extend(machine);
        file
    }

    #[test]
    fn the_header_says_for_which_machine_a_program_is() {
        for (file, uname, name) in [
            (program(1, [62, 0]), "x86_64", "x86_64"),
            (program(1, [183, 0]), "arm64", "aarch64"),
            (program(2, [0, 22]), "s390x", "s390x"),
            (program(1, [2, 1]), "loongarch64", "loongarch64"),
        ] {
            let machine = Machine::of_program(&file).expect(name);
            assert!(machine.runs_on(uname) && !machine.runs_on("vax"), "{machine:?}");
            assert_eq!(machine.name(), name);
        }
        assert_eq!(Machine(9).name(), "ELF machine 9");
    }

    #[test]
    fn what_is_no_program_for_linux_has_no_machine() {
        for file in [&b""[..], b"\x7fELF", b"#!/bin/sh\necho hello, world\n", &[0xcf; 64]] {
            assert_eq!(Machine::of_program(file), None, "{file:?}");
        }
        assert_eq!(Machine::of_program(&program(7, [62, 0])), None);
    }
}
