//! What is made of samples: quantiles, medians, how far they are apart.

/// The sample below which the part `q` of all lies, from 0 to 1 (nearest rank); `None` without
/// samples. Sorts them.
pub fn quantile(samples: &mut [f64], q: f64) -> Option<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    samples.get((last as f64 * q.clamp(0.0, 1.0)).round() as usize).copied()
}

/// The middle one; of an even number, the mean of both in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted.get(middle).copied(),
        _ => Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0),
    }
}

/// From the lowest to the highest, as a part of the median; `None` for fewer than two samples.
pub fn spread(samples: &[f64]) -> Option<f64> {
    let middle = median(samples).filter(|m| *m > 0.0 && samples.len() > 1)?;
    let highest = samples.iter().copied().fold(f64::MIN, f64::max);
    let lowest = samples.iter().copied().fold(f64::MAX, f64::min);
    Some((highest - lowest) / middle)
}

/// The quantiles that show a distribution with its tail: from the median on, each step halves what
/// is above it, down to one sample in some ten thousand.
pub fn distribution(samples: &mut [f64]) -> Vec<(f64, f64)> {
    let below = [0.0, 0.1, 0.25].into_iter();
    let tail = (1..=13).map(|halvings| 1.0 - 0.5f64.powi(halvings));
    below
        .chain(tail)
        .chain([1.0])
        .filter_map(|q| quantile(samples, q).map(|value| (q, value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let mut hundred: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        for (q, is) in [(0.0, 0.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (7.0, 100.0)] {
            assert_eq!(quantile(&mut hundred, q), Some(is), "{q}");
        }
        assert_eq!(quantile(&mut [3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn the_median_is_the_middle_or_between_both_in_the_middle() {
        for (samples, is) in [
            (&[][..], None),
            (&[4.0][..], Some(4.0)),
            (&[9.0, 1.0][..], Some(5.0)),
            (&[9.0, 1.0, 2.0][..], Some(2.0)),
            (&[1.0, 100.0, 2.0, 4.0][..], Some(3.0)),
        ] {
            assert_eq!(median(samples), is, "{samples:?}");
        }
    }

    #[test]
    fn the_spread_is_relative_and_needs_two() {
        assert_eq!(spread(&[1.0]), None);
        assert_eq!(spread(&[0.0, 0.0]), None);
        assert_eq!(spread(&[9.0, 10.0, 12.0]), Some(0.3));
    }

    #[test]
    fn a_distribution_rises_to_the_greatest_sample() {
        let mut samples: Vec<f64> = (0..5000).map(f64::from).collect();
        let points = distribution(&mut samples);
        assert!(points.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1));
        assert_eq!((points[0], points[points.len() - 1]), ((0.0, 0.0), (1.0, 4999.0)));
        assert!(distribution(&mut []).is_empty());
    }
}
