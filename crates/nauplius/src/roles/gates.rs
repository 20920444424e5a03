//! `--feature-gates`, as upstream writes it. Gates without a meaning here are taken and do nothing.

use std::str::FromStr;

/// Pod groups (`scheduling.k8s.io/v1beta1`): served, and placed together.
const GENERIC_WORKLOAD: &str = "GenericWorkload";

#[derive(clap::Args, Clone, Debug, Default)]
pub struct FeatureGates {
    /// Gates to open or close, such as GenericWorkload=true.
    #[arg(long = "feature-gates", value_delimiter = ',', value_name = "NAME=BOOL")]
    pub feature_gates: Vec<Gate>,
}

/// One gate, open or not.
#[derive(Clone, Debug)]
pub struct Gate(String, bool);

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("missing bool value for {text}"))?;
        let open = match value {
            "true" | "True" | "TRUE" | "1" | "t" | "T" => true,
            "false" | "False" | "FALSE" | "0" | "f" | "F" => false,
            _ => return Err(format!("invalid value of {name}={value}")),
        };
        Ok(Self(name.trim().into(), open))
    }
}

impl FeatureGates {
    /// The open ones.
    pub fn open(&self) -> Vec<String> {
        let last = |name: &str| self.feature_gates.iter().rev().find(|g| g.0 == name).is_some_and(|g| g.1);
        let mut names: Vec<String> = self.feature_gates.iter().map(|g| g.0.clone()).filter(|n| last(n)).collect();
        names.sort();
        names.dedup();
        names
    }

    pub fn groups(&self) -> bool {
        self.open().iter().any(|g| g == GENERIC_WORKLOAD)
    }

    /// The flag's value for another process; `None` when nothing is open.
    pub fn flag(&self) -> Option<String> {
        let open: Vec<String> = self.open().into_iter().map(|g| format!("{g}=true")).collect();
        (!open.is_empty()).then(|| open.join(","))
    }
}
