//! Zipf's law: the first comes up most, the second half as often, the third a third.

/// Draws numbers from 0 to a limit, low ones more often.
#[derive(Debug)]
pub struct Zipf {
    /// The sum of the weights up to each number.
    sums: Vec<f64>,
}

impl Zipf {
    /// Of so many numbers, with weights of 1 / rank^exponent.
    pub fn new(count: usize, exponent: f64) -> Self {
        let weights = (1..=count.max(1)).map(|rank| (rank as f64).powf(-exponent));
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    /// A number below the count.
    pub fn draw(&self) -> usize {
        let all = self.sums.last().copied().unwrap_or_default();
        let drawn = fastrand::f64() * all;
        self.sums.partition_point(|&sum| sum <= drawn).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(count: usize, exponent: f64) -> Vec<usize> {
        let (zipf, mut counts) = (Zipf::new(count, exponent), vec![0; count]);
        (0..100_000).for_each(|_| counts[zipf.draw()] += 1);
        counts
    }

    #[test]
    fn the_first_comes_up_twice_as_often_as_the_second() {
        let counts = counts(10, 1.0);
        let ratio = counts[0] as f64 / counts[1] as f64;
        assert!((1.9..2.1).contains(&ratio), "{counts:?}");
        assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    }

    #[test]
    fn without_an_exponent_all_come_up_as_often() {
        assert!(counts(10, 0.0).iter().all(|count| (9_000..11_000).contains(count)));
        assert_eq!(counts(1, 2.0), [100_000]);
    }
}
