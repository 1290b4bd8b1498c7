//! What each verb means across rooms. No terminal, no words: a verb takes values and gives values; what is to
//! be said on the way goes through a callback.

pub mod attach;
pub mod begin;
pub mod commit;
pub mod contents;
pub mod copy;
pub mod exec;
pub mod life;
pub mod monitor;
pub mod neighbour;
pub mod observe;
pub mod order;
pub mod remove;
pub mod restrain;
pub mod run;
pub mod serving;
pub mod start;
pub mod unshare;
pub mod volume;
