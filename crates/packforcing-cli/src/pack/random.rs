//! A small random number generator, the same on every machine (SplitMix64).

/// Its state.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 up to, not including, 1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normally distributed (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// `count` different numbers below `below`, in order; all of them where there are no more.
    pub fn choose(&mut self, below: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..below).collect();
        let count = count.min(below);
        for i in 0..count {
            let j = i + (self.uniform() * (below - i) as f64) as usize;
            all.swap(i, j);
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_numbers_are_different_and_every_one_comes() {
        let mut random = Random::new(7);
        let mut seen = [0; 10];
        for _ in 0..200 {
            let chosen = random.choose(10, 4);
            assert!(chosen.len() == 4 && chosen.windows(2).all(|w| w[0] < w[1]));
            chosen.iter().for_each(|&i| seen[i] += 1);
        }
        assert!(seen.iter().all(|n| (40..120).contains(n)), "{seen:?}");
        assert_eq!(random.choose(3, 9), [0, 1, 2]);
    }
}
