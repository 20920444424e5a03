//! `--feature-gates` and `--runtime-config`, as upstream writes them.

use std::str::FromStr;

use anyhow::{Result, anyhow, ensure};
use resources::enablement::Enablement;
use resources::gates::Gates;

/// Pod groups (`scheduling.k8s.io/v1beta1`): served on demand, and placed together.
const GENERIC_WORKLOAD: &str = "GenericWorkload";
/// Groups that ask for it are kept in one domain of a topology.
const TOPOLOGY: &str = "TopologyAwareWorkloadScheduling";
/// Room for volumes counts when nodes are scored.
const CAPACITY_SCORING: &str = "StorageCapacityScoring";

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
            _ => {
                let why = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
                return Err(format!("invalid value of {name}: {value}, err: {why}"));
            }
        };
        // Gates of components that version apart would stand behind another word than this one.
        Ok(Self(name.trim().trim_start_matches("kube:").into(), open))
    }
}

impl FeatureGates {
    /// The gates as set, if they can be set so.
    pub fn read(&self) -> Result<Gates> {
        Gates::new(self.feature_gates.iter().map(|g| (g.0.clone(), g.1))).map_err(|e| anyhow!(e))
    }

    /// Whether the scheduler places pods by groups.
    pub fn groups(&self) -> Result<bool> {
        Ok(self.read()?.is_open(GENERIC_WORKLOAD))
    }

    /// Whether it keeps groups together in a topology.
    pub fn topology(&self) -> Result<bool> {
        Ok(self.read()?.is_open(TOPOLOGY))
    }

    /// Whether room for volumes counts when nodes are scored.
    pub fn scores_capacity(&self) -> Result<bool> {
        Ok(self.read()?.is_open(CAPACITY_SCORING))
    }

    /// The flag's value for another process; `None` when nothing was said.
    pub fn flag(&self) -> Option<String> {
        let said: Vec<String> = self.feature_gates.iter().map(|g| format!("{}={}", g.0, g.1)).collect();
        (!said.is_empty()).then(|| said.join(","))
    }
}

/// Which kinds are served.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Serving {
    /// Built-in APIs to turn on or off: GROUP/VERSION=BOOL, GROUP/VERSION/RESOURCE=BOOL, or api/all, api/ga, api/beta, api/alpha.
    #[arg(long, value_name = "KEY=BOOL")]
    pub runtime_config: Vec<String>,
    #[command(flatten)]
    pub gates: FeatureGates,
}

impl Serving {
    pub fn read(&self) -> Result<Enablement> {
        let said = self.runtime_config.iter().map(String::as_str);
        Enablement::new(said, self.gates.read()?).map_err(|e| anyhow!(e))
    }

    /// As `read`, where a scheduler with the same gates runs beside, which needs what it places by.
    pub fn read_for_all(&self) -> Result<Enablement> {
        let enabled = self.read()?;
        let serves = enabled.serves("scheduling.k8s.io", "v1beta1", "podgroups", Some(GENERIC_WORKLOAD), false);
        ensure!(
            serves || !self.gates.groups()?,
            "{GENERIC_WORKLOAD} needs its kinds served: add --runtime-config scheduling.k8s.io/v1beta1=true"
        );
        Ok(enabled)
    }
}
