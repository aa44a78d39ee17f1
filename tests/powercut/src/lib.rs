//! A library for tests, loaded by `LD_PRELOAD` before the C library. For the files below one folder (`SOS_POWERCUT_ROOT`) it
//!
//! - writes down every change of a file and every sync, in order, into a journal (`SOS_POWERCUT_JOURNAL`), from which
//!   `tests/torture/powercut.py` builds what a disk may hold after the power was cut;
//! - makes calls fail by rules in a folder (`SOS_POWERCUT_FAULTS`), see [`faults`].
//!
//! With a journal nothing is really synced: the journal says what would be durable, and a test takes less time. Shared
//! writable mappings would escape; they are written into the journal as an escape, which fails the test.
//!
//! Not seen are system calls that do not go through the C library. `tests/torture/powercut.py` compares the journal's
//! last state with the real files, so that a write that is not seen fails the test too.

mod calls;
mod faults;
mod journal;
mod state;
