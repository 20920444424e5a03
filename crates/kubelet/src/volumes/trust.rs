//! `clusterTrustBundle` projections: the certificates of one bundle by name, or of all a signer's bundles that a
//! selector picks, each certificate once.

use std::collections::BTreeSet;

use client::{Client, ListOptions};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use meta::LabelSelector;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The certificates of PEM text, without headers, comments and repetition, in one order whatever the input's.
pub fn normalized<'a>(bundles: impl IntoIterator<Item = &'a str>) -> String {
    let mut blocks = BTreeSet::new();
    for text in bundles {
        for part in text.split(BEGIN).skip(1) {
            let Some((body, _)) = part.split_once(END) else { continue };
            let base64: String = body.split_whitespace().collect();
            blocks.insert(base64);
        }
    }
    let mut out = String::new();
    for block in blocks {
        out.push_str(BEGIN);
        out.push('\n');
        let mut rest = block.as_str();
        while !rest.is_empty() {
            // Base64 is ASCII: any cut is a character's.
            let (line, tail) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = tail;
        }
        out.push_str(END);
        out.push('\n');
    }
    out
}

/// The file's content; empty for an optional projection that finds nothing.
pub async fn content(client: &Client, source: &ClusterTrustBundleProjection) -> Result<String, String> {
    let optional = source.optional == Some(true);
    let api = client.api::<ClusterTrustBundle>();
    let bundles = if let Some(name) = source.name.as_deref().filter(|n| !n.is_empty()) {
        match api.get_opt(name).await.map_err(|e| e.to_string())? {
            Some(bundle) => vec![bundle],
            None if optional => return Ok(String::new()),
            None => return Err(format!("clustertrustbundle \"{name}\" not found")),
        }
    } else {
        let signer = source.signer_name.as_deref().unwrap_or_default();
        // An absent selector picks nothing, an empty one everything.
        let selector = serde_json::to_value(&source.label_selector).map_err(|e| e.to_string())?;
        let selector = LabelSelector::from_value(&selector)?;
        let list =
            api.list(&ListOptions::fields(format!("spec.signerName={signer}"))).await.map_err(|e| e.to_string())?;
        let picked = list
            .items
            .iter()
            .filter(|o| selector.matches(&o.meta.labels))
            .filter_map(|o| o.typed::<ClusterTrustBundle>().ok());
        picked.filter(|b| b.spec.signer_name.as_deref().unwrap_or_default() == signer).collect()
    };
    if bundles.is_empty() {
        return if optional {
            Ok(String::new())
        } else {
            Err("combination of signerName and labelSelector matched zero ClusterTrustBundles".into())
        };
    }
    Ok(normalized(bundles.iter().map(|b| b.spec.trust_bundle.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_once_and_in_order() {
        let pem = |body: &str| format!("note\n{BEGIN}\n{body}\n{END}\n");
        let (a, b) = (pem("AAAA"), pem("BB\nBB"));
        let got = normalized([format!("{b}{a}").as_str(), a.as_str()]);
        assert_eq!(got, format!("{BEGIN}\nAAAA\n{END}\n{BEGIN}\nBBBB\n{END}\n"));
    }
}
