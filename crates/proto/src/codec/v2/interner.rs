//! [`Interner`]: what occurs again and again, numbered in the order of its first occurrence.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Numbers equal things alike.
///
/// The columns of rows and the tables of transactions come in an order that repeats. So what followed last time is tried
/// first, and nothing is hashed where the guess is right.
#[derive(Debug)]
pub(super) struct Interner<T> {
    known: Vec<T>,
    numbers: HashMap<T, u32>,
    /// For each known thing, what came after it last time.
    successors: Vec<u32>,
    last: usize,
}

impl<T: Clone + Eq + Hash> Interner<T> {
    pub(super) fn new() -> Self {
        Self { known: Vec::new(), numbers: HashMap::new(), successors: Vec::new(), last: 0 }
    }

    /// What came after the last one last time: the number to be tried first.
    pub(super) fn guess(&self) -> u32 {
        self.successors.get(self.last).copied().unwrap_or_default()
    }

    /// The number of `thing`; `own` makes one to be kept, where it is new.
    pub(super) fn number<Q>(&mut self, thing: &Q, own: impl FnOnce() -> T) -> u32
    where
        T: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let guess = self.guess();
        let is_right = self.known.get(guess as usize).is_some_and(|known| known.borrow() == thing);
        let number = if is_right { guess } else { self.look_up(thing, own) };
        self.follow(number)
    }

    /// Notes that the next one is that of a number that [`number`](Self::number) gave.
    pub(super) fn follow(&mut self, number: u32) -> u32 {
        if let Some(successor) = self.successors.get_mut(self.last) {
            *successor = number;
        }
        self.last = number as usize;
        number
    }

    fn look_up<Q>(&mut self, thing: &Q, own: impl FnOnce() -> T) -> u32
    where
        T: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some(number) = self.numbers.get(thing) {
            return *number;
        }
        // There are no more of them than changes in memory.
        let number = self.known.len() as u32;
        let owned = own();
        self.numbers.insert(owned.clone(), number);
        self.known.push(owned);
        self.successors.push(number);
        number
    }

    /// In the order of their numbers.
    pub(super) fn known(&self) -> &[T] {
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_things_get_the_same_number_in_order_of_first_occurrence() {
        let mut interner = Interner::new();
        let mut numbers =
            |text: &'static str| -> Vec<u32> { text.split(' ').map(|word| interner.number(word, || word)).collect() };
        assert_eq!(numbers("a b c a b c c a d a"), [0, 1, 2, 0, 1, 2, 2, 0, 3, 0]);
        assert_eq!(interner.known(), ["a", "b", "c", "d"]);
    }
}
