//! Owns the way from a milestone's name to what it says. They are entries like any other, found by the index.

use std::sync::Arc;

use super::{Error, Store};
use crate::chain::place::Place;
use crate::chain::record::Kind;
use crate::chain::seqs::{CHAIN_COUNT_MAX, Milestone, MilestoneContent, Name, Seqs};

impl Store {
    /// The milestone of this name, and those that it builds on: `None` if they are not all here.
    pub fn milestone(&self, name: Name) -> Result<Option<Arc<Milestone>>, Error> {
        let (mut contents, mut next) = (Vec::new(), Some(name));
        while let Some(name) = next {
            let Some((_, content)) = self.milestone_entry(name)? else { return Ok(None) };
            next = content.base;
            contents.push(content);
            if contents.len() > CHAIN_COUNT_MAX {
                return Ok(None);
            }
        }
        let mut milestone: Option<Milestone> = None;
        for content in contents.into_iter().rev() {
            milestone = Some(content.milestone(milestone.as_ref()));
        }
        Ok(milestone.map(Arc::new))
    }

    /// The same without the milestones at the end of each log, as far as that is beyond `before`.
    pub fn without_last_milestones(&self, before: &Seqs, mut until: Seqs) -> Result<Seqs, Error> {
        let mut reader = self.log.read()?;
        for (origin, mut last) in until.beyond(before) {
            while last > before.seq(origin)
                && reader.peek(origin, last)?.is_some_and(|entry| entry.record().kind == Kind::Milestone)
            {
                last -= 1;
            }
            until.lower(origin, last);
        }
        Ok(until)
    }

    /// Where it stands, if it is here.
    pub fn milestone_place(&self, name: Name) -> Result<Option<Place>, Error> {
        Ok(self.milestone_entry(name)?.map(|(place, _)| place))
    }

    fn milestone_entry(&self, name: Name) -> Result<Option<(Place, MilestoneContent)>, Error> {
        for standing in self.index.standings(name.0)? {
            if Name::of(standing.digest) != name {
                continue; // a message whose id somebody chose so
            }
            let Place { origin, seq, .. } = standing.place;
            let Some(entry) = self.log.read()?.peek(origin, seq)? else { continue };
            let record = entry.record();
            let is_it = record.kind == Kind::Milestone && record.digest == standing.digest;
            if let Some(content) = MilestoneContent::decode(record.content).filter(|_| is_it) {
                return Ok(Some((standing.place, content)));
            }
        }
        Ok(None)
    }
}
