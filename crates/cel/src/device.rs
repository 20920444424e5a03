//! Expressions over one `device`: what a claim or a class asks of the devices it may have.
//!
//! Follows `k8s.io/dynamic-resource-allocation/cel`. Knows types only; values of devices are made by whoever runs these.

use crate::{Env, Library, Program, Provider, Type};

/// The type of `device`.
pub const DEVICE: &str = "kubernetes.DRADevice";

struct DeviceType;

impl Provider for DeviceType {
    fn field(&self, name: &str, field: &str) -> Option<Type> {
        let by_domain = |of: Type| Type::map(Type::String, Type::map(Type::String, of));
        match (name, field) {
            (DEVICE, "driver") => Some(Type::String),
            (DEVICE, "allowMultipleAllocations") => Some(Type::Bool),
            (DEVICE, "attributes") => Some(by_domain(Type::Dyn)),
            (DEVICE, "capacity") => Some(by_domain(Type::opaque("kubernetes.Quantity"))),
            _ => None,
        }
    }
}

/// An expression that says yes or no of a device, or why it cannot be one.
pub fn compile(text: &str) -> Result<Program, String> {
    let env = Env::new(&DeviceType).var("device", Type::Struct(DEVICE.into())).library(Library::Bindings);
    let program = env.compile(text).map_err(|issues| format!("compilation failed: {issues}"))?;
    match program.output() {
        Type::Bool | Type::Dyn => Ok(program),
        other => Err(format!("must evaluate to bool or the unknown type, not {}", other.full())),
    }
}
