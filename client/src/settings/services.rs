//! Where applications find the services besides Ollama.

use std::{collections::BTreeMap, fmt, str::FromStr};

use proto::{identity::Name, wire::DEFAULT_SERVICE};

use crate::local::listener::ListenAddr;

/// A service of the server, and where applications find it: `vllm=localhost:8000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceListen {
    pub(crate) name: Name,
    pub(crate) listen: ListenAddr,
}

impl ServiceListen {
    /// Those of a table `[services]`.
    pub(super) fn of_table(table: BTreeMap<Name, ListenAddr>) -> Vec<Self> {
        table.into_iter().map(|(name, listen)| Self { name, listen }).collect()
    }
}

impl FromStr for ServiceListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, listen) =
            text.split_once('=').ok_or("write it as NAME=ADDR, for example vllm=localhost:8000")?;
        let name: Name = name.parse().map_err(|e| format!("`{name}` is not a name: {e}"))?;
        if name.as_str() == DEFAULT_SERVICE {
            return Err(format!("`{name}` is always served: choose its address with --listen"));
        }
        Ok(Self { name, listen: listen.parse()? })
    }
}

impl fmt::Display for ServiceListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.listen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_written_with_its_address() {
        for good in ["vllm=localhost:8000", "db=127.0.0.1:5432", "x=unix:/run/x.sock"] {
            assert_eq!(good.parse::<ServiceListen>().expect(good).to_string(), good);
        }
        for (bad, why) in [
            ("vllm", "NAME=ADDR"),
            ("=localhost:1", "not a name"),
            ("a b=localhost:1", "not a name"),
            ("vllm=", "localhost:PORT"),
            ("vllm=gpu.lan:1", "localhost:PORT"),
            ("ollama=localhost:1", "--listen"),
        ] {
            let told = bad.parse::<ServiceListen>().expect_err(bad);
            assert!(told.contains(why), "{bad}: {told}");
        }
    }
}
