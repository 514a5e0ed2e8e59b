//! What the flow thread found, as records and answers.

use std::collections::HashMap;
use std::sync::Arc;

use agent_common::event::Actor;
use agent_common::maps::SocketLabel;
use bytemuck::Zeroable;
use jiff::Timestamp;

use super::flows::{Cut, FlowNews};
use super::state::Daemon;
use crate::api::types::{ProcessView, Side, WhoisQuery, WhoisView};
use crate::api::{ErrorBody, ErrorCode};
use crate::flow::Flow;
use crate::record::{Cause, Event, FlowCut, PolicyNote, Process};

/// Lines for the connections of one task that are cut at once; one more says how many others there were.
const MAX_LINES: u64 = 1000;

impl Daemon {
    pub(super) fn flow_news(&mut self, news: FlowNews) {
        match news {
            FlowNews::Cut(cuts) => self.record_cuts(&cuts),
            FlowNews::Found(asked, flows, reply) => drop(reply.send(self.whois(&asked, &flows))),
        }
    }

    fn record_cuts(&mut self, cuts: &[Cut]) {
        let mut lines: HashMap<(u32, u32), u64> = HashMap::new();
        let mut others: HashMap<(u32, u32), (FlowCut, u64)> = HashMap::new();
        for cut in cuts {
            let task = (cut.label.slot, cut.label.epoch);
            let number = lines.entry(task).or_default();
            *number += 1;
            if *number <= MAX_LINES {
                self.record_cut(cut);
            } else if let Some((_, more)) = others.get_mut(&task) {
                *more += 1;
            } else if let Some(line) = self.cut_line(cut) {
                others.insert(task, (line, 1));
            }
        }
        for (line, count) in others.into_values() {
            let line = FlowCut { process: None, local: None, remote: None, bytes_acked: None, count, ..line };
            self.recorder.record(Timestamp::now(), Event::FlowCut(Box::new(line)));
        }
    }

    fn record_cut(&mut self, cut: &Cut) {
        match self.cut_line(cut) {
            Some(line) => self.recorder.record(Timestamp::now(), Event::FlowCut(Box::new(line))),
            None => self.lost(Cause::Undecodable, 1),
        }
    }

    fn cut_line(&mut self, cut: &Cut) -> Option<FlowCut> {
        let task = self.reference(cut.label.slot, cut.label.epoch)?;
        let detail = self.shared.details.get(cut.detail);
        let policies: Vec<PolicyNote> =
            detail.map_or_else(Vec::new, |detail| detail.policies.iter().map(PolicyNote::from).collect());
        Some(FlowCut {
            task,
            process: self.maker(&cut.label),
            protocol: cut.flow.protocol,
            local: Some(cut.flow.local),
            remote: cut.flow.remote,
            effect: cut.effect,
            reason: cut.reason,
            policies: policies.into(),
            destroyed: cut.destroyed == Ok(true),
            error: cut.destroyed.as_ref().err().map(|error| Arc::from(error.as_str())),
            bytes_acked: cut.flow.bytes_acked,
            count: 1,
        })
    }

    /// The process that made a socket, as lineage knows it: one that has gone may have left its number to another.
    fn maker(&mut self, label: &SocketLabel) -> Option<Process> {
        let known = self.lineage.get(label.tgid)?;
        if (known.slot, known.epoch) != (label.slot, label.epoch) {
            return None;
        }
        let actor =
            Actor { slot: label.slot, epoch: label.epoch, tgid: label.tgid, tid: label.tgid, ..Actor::zeroed() };
        Some(self.process(&actor))
    }

    /// Who has a connection. Where both its ends belong to agents, the one that is remote to who asks comes first.
    fn whois(&mut self, asked: &WhoisQuery, flows: &[Flow]) -> Result<WhoisView, ErrorBody> {
        let mut views: Vec<WhoisView> = flows.iter().filter_map(|flow| self.connection(asked, flow)).collect();
        views.sort_by_key(|view| view.side != Side::Remote);
        if asked.local.is_none() && views.len() > 1 {
            let message = format!("{} agents' connections have the end {}", views.len(), asked.remote);
            return Err(ErrorBody::new(ErrorCode::AmbiguousConnection, message, "name both ends"));
        }
        views.into_iter().next().ok_or_else(|| {
            let message = format!("the connection {asked} is of a task that is not known any more");
            ErrorBody::new(ErrorCode::NoAgent, message, "look for its `flow_cut` record")
        })
    }

    fn connection(&mut self, asked: &WhoisQuery, flow: &Flow) -> Option<WhoisView> {
        let (label, remote) = (flow.label?, flow.remote?);
        let task = self.task(self.table.by_mark(label.slot, label.epoch)?);
        let maker = self.maker(&label);
        let side = if asked.remote.ip().to_canonical() == flow.local.ip() && asked.remote.port() == flow.local.port() {
            Side::Remote
        } else {
            Side::Local
        };
        Some(WhoisView {
            protocol: flow.protocol,
            side,
            address: flow.local,
            peer: remote,
            mark: flow.mark,
            process: maker.map(|process| ProcessView {
                pid: process.pid,
                exe: process.exe.map(|exe| exe.to_string()),
                comm: process.comm.to_string(),
                uid: process.uid,
            }),
            task,
        })
    }
}
