//! Which pods belong together, for pods that do not say how to spread: those of one Service and controller.

use crate::pod::Pod;
use crate::selector::Selector;
use crate::symbol::{Symbol, SymbolMap};

/// Selectors of Services and of the controllers that own pods.
#[derive(Default)]
pub struct SpreadDefaults {
    /// By namespace, then name.
    services: SymbolMap<SymbolMap<Selector>>,
    /// By namespace, then (kind, name) mixed into one symbol.
    controllers: SymbolMap<SymbolMap<Selector>>,
}

fn put(map: &mut SymbolMap<SymbolMap<Selector>>, namespace: Symbol, name: Symbol, selector: Option<Selector>) {
    let of_namespace = map.entry(namespace).or_default();
    match selector {
        Some(selector) => {
            of_namespace.insert(name, selector);
        }
        None => {
            of_namespace.remove(&name);
            if of_namespace.is_empty() {
                map.remove(&namespace);
            }
        }
    }
}

impl SpreadDefaults {
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: Option<Selector>) {
        put(&mut self.services, Symbol::of(namespace), Symbol::of(name), selector);
    }

    pub fn set_controller(&mut self, kind: &str, namespace: &str, name: &str, selector: Option<Selector>) {
        put(&mut self.controllers, Symbol::of(namespace), Symbol::of(name).with(Symbol::of(kind)), selector);
    }

    /// What picks the pods that belong with this one; `None` when none does.
    pub fn selector(&self, pod: &Pod) -> Option<Selector> {
        let mut out = Selector::default();
        for service in self.services.get(&pod.namespace).into_iter().flat_map(SymbolMap::values) {
            if service.matches(&pod.labels) {
                out.and(service);
            }
        }
        if let Some((kind, name)) = pod.controller
            && let Some(selector) = self.controllers.get(&pod.namespace).and_then(|c| c.get(&name.with(kind)))
        {
            out.and(selector);
        }
        (!out.is_everything()).then_some(out)
    }
}
