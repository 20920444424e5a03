//! Nodes by score, so that the best, or a random one of several, is found without looking at the others.

use rand::Rng;

use crate::snapshot::NodeId;

/// Nodes in buckets by score. Scores are small and not negative.
#[derive(Default)]
pub struct Ranking {
    buckets: Vec<Vec<NodeId>>,
    /// By node: its score and its place in the bucket.
    places: Vec<Option<(u32, u32)>>,
}

impl Ranking {
    /// Sets a node's score; `None` takes it out.
    pub fn set(&mut self, id: NodeId, score: Option<u32>) {
        if self.places.len() <= id.index() {
            self.places.resize(id.index() + 1, None);
        }
        let old = self.places[id.index()].take();
        if let Some((bucket, at)) = old {
            let bucket = &mut self.buckets[bucket as usize];
            bucket.swap_remove(at as usize);
            if let Some(moved) = bucket.get(at as usize)
                && let Some(place) = &mut self.places[moved.index()]
            {
                place.1 = at;
            }
            while self.buckets.last().is_some_and(Vec::is_empty) {
                self.buckets.pop();
            }
        }
        if let Some(score) = score {
            if self.buckets.len() <= score as usize {
                self.buckets.resize_with(score as usize + 1, Vec::new);
            }
            let bucket = &mut self.buckets[score as usize];
            self.places[id.index()] = Some((score, bucket.len() as u32));
            bucket.push(id);
        }
    }

    /// The best that will do, any of several. Asks from the best down, and of equals from a random one on.
    pub fn first(&self, rng: &mut impl Rng, mut will_do: impl FnMut(NodeId) -> bool) -> Option<NodeId> {
        for bucket in self.buckets.iter().rev().filter(|b| !b.is_empty()) {
            let (before, from) = bucket.split_at(rng.random_range(0..bucket.len()));
            if let Some(id) = from.iter().chain(before).find(|id| will_do(**id)) {
                return Some(*id);
            }
        }
        None
    }

    /// A random one of the best.
    pub fn best(&self, rng: &mut impl Rng) -> Option<NodeId> {
        let best = self.buckets.last()?;
        // The last bucket is never empty.
        best.get(rng.random_range(0..best.len())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use std::collections::BTreeSet;

    #[test]
    fn the_best_are_found_as_scores_change() {
        let mut ranking = Ranking::default();
        let mut scores = [None; 20];
        let mut rng = SmallRng::seed_from_u64(7);
        assert_eq!(ranking.best(&mut rng), None);
        for _ in 0..2000 {
            let (at, score) = (rng.random_range(0..20), rng.random_range(0..6));
            scores[at] = (score > 0).then_some(score);
            ranking.set(NodeId(at as u32), scores[at]);
            let most = scores.iter().flatten().max().copied();
            let best: BTreeSet<usize> = (0..20).filter(|i| most.is_some() && scores[*i] == most).collect();
            match ranking.best(&mut rng) {
                Some(id) => assert!(best.contains(&id.index())),
                None => assert!(best.is_empty()),
            }
            let even: Vec<u32> = (0..20).filter(|i| i % 2 == 0).filter_map(|i| scores[i]).collect();
            let first = ranking.first(&mut rng, |id| id.index() % 2 == 0);
            assert_eq!(first.and_then(|id| scores[id.index()]), even.iter().max().copied());
        }
    }
}
