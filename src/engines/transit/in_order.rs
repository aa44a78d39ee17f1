//! Many operations of one request, one after the other: the versions of a key that are wrapped or brought out.

use futures_util::{StreamExt, stream::FuturesOrdered};

use super::{gate::WRAPS, turn::Turn};

/// Begins an operation for each item, as many at once as can have [their turns](WRAPS), and gives what came of them in the order of the items:
/// who has more of them waiting for a turn would only keep others from theirs. An item is taken, and its operation made, only when it
/// is about to begin.
pub struct InOrder<I, B, F: Future> {
    items: I,
    begin: B,
    under_way: FuturesOrdered<F>,
    turn: Turn,
}

impl<I: Iterator, B: FnMut(I::Item) -> F, F: Future> InOrder<I, B, F> {
    /// Nothing begins before the first [`InOrder::next`].
    pub fn of(items: impl IntoIterator<IntoIter = I>, begin: B) -> Self {
        Self { items: items.into_iter(), begin, under_way: FuturesOrdered::new(), turn: Turn::begin() }
    }

    /// The outcome of the next operation; `None` when there are no more.
    pub async fn next(&mut self) -> Option<F::Output> {
        while self.under_way.len() < WRAPS
            && let Some(item) = self.items.next()
        {
            self.turn.give_way().await;
            self.under_way.push_back((self.begin)(item));
        }
        self.under_way.next().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn outcomes_come_in_order_and_no_more_than_the_bound_are_under_way() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (now, most) = (&now, &most);
        let mut squares = InOrder::of(0..200_u64, |number| async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_micros(number * 37 % 500)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            number * number
        });
        for number in 0..200_u64 {
            assert_eq!(squares.next().await, Some(number * number));
        }
        assert_eq!(squares.next().await, None);
        assert_eq!(most.load(Ordering::Relaxed), WRAPS);
    }
}
