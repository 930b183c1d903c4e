//! Test support for Litemesh: the model, the checkers, the memory transport.
