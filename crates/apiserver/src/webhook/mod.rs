//! Webhooks: parts of the API that run elsewhere.
//!
//! [`client`] makes one call, `asking` judges its answer. [`admission`] asks webhooks about writes, by the rules of [`configuration`]; [`conversion`]
//! has custom resources turned from one version into another. What a webhook answers is checked before it counts, and a
//! webhook that does not answer costs bounded time. Which writes there are, and when they are asked about, is the
//! pipeline's business.

pub mod admission;
mod asking;
pub mod client;
mod conditions;
pub mod configuration;
pub mod conversion;
mod subject;
pub(crate) mod trust;
