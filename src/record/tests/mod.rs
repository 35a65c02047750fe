//! The state machine against its table, and against what must hold whatever happens.

mod properties;
mod table;

use super::world::*;
use super::*;
