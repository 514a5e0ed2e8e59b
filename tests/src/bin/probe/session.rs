//! A process that does one action after the other: a line of words comes in, what became of it and a `.` go out.

use crate::{State, perform};

pub(super) fn serve() {
    let mut state = State::default();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        perform(&mut state, &words);
        println!(".");
    }
}
