//! The moments at which something is struck that takes a time nobody knows.

use std::cell::Cell;
use std::time::Duration;

use super::chance::Chance;

/// Waits for a moment by chance before, while or after something happens: it follows what it is told, since how long
/// things take depends on what else the machine does.
#[derive(Debug)]
pub struct Moments {
    chance: Chance,
    /// Microseconds below which the next moment lies.
    span: Cell<u64>,
}

impl Moments {
    /// Begins with moments within `span`.
    pub fn within(span: Duration) -> Self {
        Self { chance: Chance::new(), span: Cell::new(span.as_micros() as u64) }
    }

    /// Waits until the next one.
    pub fn wait(&self) {
        std::thread::sleep(Duration::from_micros(self.chance.below(self.span.get().max(1))));
    }

    /// Takes note whether what was to be struck had ended before: then the next moments are earlier, else later.
    pub fn was_over(&self, over: bool) {
        let span = self.span.get();
        let next = if over { span * 3 / 4 } else { span * 5 / 4 };
        self.span.set(next.clamp(1_000, 60_000_000));
    }

    /// The source of further chances.
    pub fn chance(&self) -> &Chance {
        &self.chance
    }
}
