//! A step in words, for whoever reads the way to a broken promise.

use super::{Action, Call, Protocol, World};
use crate::check::Tell;
use crate::record::{Command, RequestId};

impl Tell for Protocol {
    fn tell(&self, world: &World, action: &Action) -> String {
        let call = |at: usize| name(&world.calls[at]);
        match *action {
            Action::Send(caller, command) => format!("{} sends {}", letter(caller), command_name(command)),
            Action::Anew(caller) => format!("{} wants the key again", letter(caller)),
            Action::Decide(at) => format!("a server decides {}", call(at)),
            Action::Guess(at) => format!("a server guesses, for {}, that there is no record", call(at)),
            Action::DecideByClock(at) => format!("a server decides {}, by its clock after a lapse", call(at)),
            Action::Land(at) => format!("the write of {} lands", call(at)),
            Action::TimeOut(at) => format!("the write of {} is not answered in time", call(at)),
            Action::Receive(at) => format!("the answer to {} arrives", call(at)),
            Action::GiveBack(at) => {
                format!("the answer to {} is dropped, and its claim given back", call(at))
            }
            Action::LandLate(at) => {
                let write = world.late[at];
                format!("a late write lands: {:?} of {:?}", write.change, write.next.map(|next| next.state))
            }
            Action::NextLease => "the next lease of locks is given out".to_owned(),
            Action::EndLease => "the oldest lease of locks ends".to_owned(),
            Action::Expire => "the record expires".to_owned(),
            Action::Operate(command) => format!("an operator sends {}", command_name(command)),
        }
    }
}

fn name(call: &Call) -> String {
    command_name(call.command)
}

fn command_name(command: Command) -> String {
    match command {
        Command::Begin { request: RequestId { caller, nth }, .. } => {
            format!("Begin({}{nth})", letter(caller))
        }
        other => format!("{other:?}"),
    }
}

fn letter(caller: u8) -> char {
    char::from(b'A' + caller)
}
