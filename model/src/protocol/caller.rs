//! What callers do: send, hear, and send again.

use super::{Action, Answer, Broken, Call, Lease, Phase, Protocol, World};
use crate::fault::Fault;
use crate::record::{Command, How, OPERATORS_OUTCOME, RequestId, State, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    /// Which of its request ids it uses.
    pub(super) nth: u8,
    pub(super) stage: Stage,
    /// How many calls it may still send.
    pub(super) calls: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Wants the key.
    Asking,
    /// Works under a token. It counts its lock as held until this lease ends; works on without it, if it cannot
    /// be stopped; and still tries to complete what it did.
    Working { token: Token, until: Lease, checkpoint: u8 },
    /// Has sent Complete.
    Completing { token: Token },
    /// Has sent Release.
    Releasing { token: Token, how: How },
    /// Has the outcome, or has given up.
    Done,
}

impl World {
    pub(super) fn offer_callers(&self, model: &Protocol, actions: &mut Vec<Action>) {
        for (number, caller) in (0_u8..).zip(&self.callers) {
            let mut send = |command| actions.push(Action::Send(number, command));
            if caller.calls == 0 {
                continue;
            }
            let request = RequestId { caller: number, nth: caller.nth };
            match caller.stage {
                Stage::Asking => send(Command::Begin { request, hold: model.hold }),
                Stage::Working { token, checkpoint, .. } => {
                    send(Command::Complete { token, outcome: request.outcome() });
                    if model.renew {
                        let checkpoint = if model.checkpoints { checkpoint + 1 } else { 0 };
                        send(Command::Renew { token, checkpoint });
                    }
                    for &how in model.release {
                        send(Command::Release { token, how });
                    }
                }
                Stage::Completing { token } => {
                    send(Command::Complete { token, outcome: request.outcome() });
                }
                Stage::Releasing { token, how } => {
                    send(Command::Release { token, how });
                    actions.push(Action::Anew(number));
                }
                Stage::Done => {}
            }
        }
        self.offer_operators(actions);
        for (at, call) in self.calls.iter().enumerate() {
            if matches!(call.phase, Phase::Answered(_)) && self.listener(call).is_some() {
                actions.push(Action::Receive(at));
            }
        }
    }

    /// An operator names the token of what it sees now; its command may be decided much later.
    fn offer_operators(&self, actions: &mut Vec<Action>) {
        let Some(stored) = self.record.filter(|_| self.operators > 0) else { return };
        let token = stored.record.token;
        if matches!(stored.record.state, State::InDoubt { .. }) {
            actions.push(Action::Operate(Command::Resolve { token, outcome: 0 }));
            actions.push(Action::Operate(Command::Resolve { token, outcome: OPERATORS_OUTCOME }));
        }
        actions.push(Action::Operate(Command::Delete { token }));
    }

    pub(super) fn operate(&mut self, command: Command) {
        self.operators -= 1;
        self.calls.push(Call::new(command, 0));
    }

    pub(super) fn send(&mut self, model: &Protocol, caller: usize, command: Command) {
        let counts = matches!(command, Command::Renew { .. }) || model.has(Fault::OlderLeaseKept);
        self.calls.push(Call::new(command, if counts { self.lease } else { 0 }));
        let caller = &mut self.callers[caller];
        caller.calls -= 1;
        match (&mut caller.stage, command) {
            (stage, Command::Complete { token, .. }) => *stage = Stage::Completing { token },
            (stage, Command::Release { token, how }) => *stage = Stage::Releasing { token, how },
            (Stage::Working { checkpoint, .. }, Command::Renew { checkpoint: sent, .. }) => {
                *checkpoint = sent
            }
            _ => {}
        }
    }

    /// The request id is spent.
    pub(super) fn anew(&mut self, model: &Protocol, caller: usize) {
        let caller = &mut self.callers[caller];
        if !model.has(Fault::SameIdAfterRelease) {
            caller.nth += 1;
        }
        caller.stage = Stage::Asking;
    }

    /// The caller that still waits for the answer of a call.
    pub(super) fn listener(&self, call: &Call) -> Option<usize> {
        let own = |request, number, caller: &Caller| request == RequestId { caller: number, nth: caller.nth };
        let waits = |number: u8, caller: &Caller| match (call.command, caller.stage) {
            (Command::Begin { request, .. }, Stage::Asking) => own(request, number, caller),
            // A claim may come twice, by a call that was thought lost.
            (Command::Begin { request, .. }, Stage::Working { .. }) => {
                own(request, number, caller)
                    && !matches!(call.phase, Phase::Answered(Answer::Replay(_) | Answer::Lost))
            }
            (Command::Renew { token, .. }, Stage::Working { token: held, .. })
            | (Command::Complete { token, .. }, Stage::Completing { token: held })
            | (Command::Release { token, .. }, Stage::Releasing { token: held, .. }) => token == held,
            _ => false,
        };
        let mut numbered = (0_u8..).zip(&self.callers);
        numbered.find(|(number, caller)| waits(*number, caller)).map(|(number, _)| usize::from(number))
    }

    pub(super) fn receive(&mut self, model: &Protocol, at: usize) {
        let call = self.calls[at];
        let (Phase::Answered(answer), Some(number)) = (call.phase, self.listener(&call)) else { return };
        if model.has(Fault::GuardAfterDelivery) {
            self.calls[at].phase = Phase::Delivered(answer);
        } else {
            self.calls.remove(at);
        }
        let caller = &mut self.callers[number];
        match (answer, caller.stage) {
            (Answer::Claim { token, until, checkpoint, .. }, Stage::Asking) => {
                caller.stage = Stage::Working { token, until, checkpoint };
            }
            (
                Answer::Claim { token, until, .. },
                Stage::Working { token: held, until: counted, checkpoint },
            ) if token == held => {
                caller.stage = Stage::Working { token, until: until.max(counted), checkpoint };
            }
            (Answer::Claim { token, until, checkpoint, .. }, Stage::Working { until: counted, .. }) => {
                caller.stage = Stage::Working { token, until, checkpoint };
                if until > 0 && counted > 0 {
                    self.breaks(Broken::TwoClaimsOfOneRequest);
                }
            }
            (Answer::Ok { until, .. }, Stage::Working { token, until: counted, checkpoint }) => {
                caller.stage = Stage::Working { token, until: until.max(counted), checkpoint };
            }
            (Answer::Replay(_), _) | (Answer::Ok { .. }, Stage::Completing { .. }) => {
                caller.stage = Stage::Done;
            }
            // Start again from Begin.
            (Answer::Lost, Stage::Asking | Stage::Working { .. } | Stage::Completing { .. })
            | (Answer::Ok { .. } | Answer::Lost, Stage::Releasing { .. }) => {
                caller.nth += 1;
                caller.stage = Stage::Asking;
            }
            _ => {}
        }
    }
}
