use super::{CaChange::*, *};

/// CAs that began at 1000, 2000, …; each with the time when it retired.
fn records(retired: &[Option<i64>]) -> CaRecords {
    let record = |(at, retired): (usize, &Option<i64>)| CaRecord {
        number: at as u32 + 1,
        since: (at as i64 + 1) * 1000,
        retired: *retired,
    };
    CaRecords::new(retired.iter().enumerate().map(record).collect())
}

#[test]
fn the_newest_is_current_and_those_before_it_are_old_until_they_retire() {
    use CaState::*;
    for (retired, states) in [
        (&[None][..], &[Some(Current), None][..]),
        (&[None, None], &[Some(Old), Some(Current), None]),
        (&[Some(5), None], &[Some(Retired), Some(Current)]),
        (&[None, Some(5), None], &[Some(Old), Some(Retired), Some(Current)]),
        // The newest one cannot retire: nothing could sign.
        (&[Some(5), Some(6)], &[Some(Retired), Some(Current)]),
    ] {
        let known = records(retired);
        for (at, state) in states.iter().enumerate() {
            assert_eq!(known.state(at as u32 + 1), *state, "{retired:?} {at}");
        }
        assert_eq!(known.current().number as usize, retired.len());
    }
    assert_eq!(CaRecords::new(Vec::new()), CaRecords::default());
    assert_eq!(CaRecords::default().state(FIRST_CA), Some(Current));
    let known = records(&[None, None, None]);
    assert_eq!([1, 2, 3].map(|n| known.replaced(n)), [Some(2000), Some(3000), None]);
}

#[test]
fn knocks_of_a_retired_ca_open_only_to_those_who_never_got_a_newer_one() {
    for (retired, number, has, answers) in [
        (&[None][..], 1, 1, true),
        (&[None], 2, 1, false),
        // In the overlap, a device may have lost the new one, for example with its disk.
        (&[None, None], 1, 1, true),
        (&[None, None], 1, 2, true),
        (&[None, None], 2, 1, true),
        (&[Some(5), None], 1, 1, true),
        (&[Some(5), None], 1, 2, false),
        (&[Some(5), None], 2, 2, true),
        // It missed two.
        (&[Some(5), Some(6), None], 1, 1, true),
        (&[Some(5), Some(6), None], 2, 1, true),
        (&[Some(5), Some(6), None], 2, 2, true),
        (&[Some(5), Some(6), None], 2, 3, false),
        (&[Some(5), Some(6), None], 3, 1, true),
    ] {
        assert_eq!(records(retired).answers(number, has), answers, "{retired:?} {number} {has}");
    }
}

#[test]
fn a_ca_retires_by_itself_when_no_device_needs_it_and_the_overlap_has_passed() {
    let at = |since: i64| since + OVERLAP;
    for (retired, oldest, now, due) in [
        (&[None][..], None, i64::MAX, &[][..]),
        (&[None, None], Some(1), i64::MAX, &[]),
        (&[None, None], Some(2), at(2000) - 1, &[]),
        (&[None, None], Some(2), at(2000), &[1]),
        (&[None, None], None, at(2000), &[1]),
        (&[Some(5), None], Some(2), at(2000), &[]),
        // One device has the first only, so the second stays, too.
        (&[None, None, None], Some(1), i64::MAX, &[]),
        (&[None, None, None], Some(2), at(3000), &[1]),
        (&[None, None, None], Some(3), at(3000) - 1, &[1]),
        (&[None, None, None], Some(3), at(3000), &[1, 2]),
        // A clock that was set back retires nothing.
        (&[None, None], Some(2), 0, &[]),
    ] {
        assert_eq!(records(retired).due(oldest, now), due, "{retired:?} {oldest:?} {now}");
    }
}

#[test]
fn a_device_recovers_for_ninety_days_after_its_ca_has_retired() {
    let known = records(&[Some(7), None]);
    assert_eq!(known.recovers_until(1), Some(7 + RECOVER_WITHIN));
    assert_eq!((known.recovers_until(2), known.recovers_until(3)), (None, None));
}

#[test]
fn of_too_many_the_oldest_retired_ones_are_forgotten() {
    let many = |retired: usize, all: usize| {
        let all: Vec<_> = (0..all).map(|at| (at < retired).then_some(5)).collect();
        records(&all).to_forget()
    };
    for (retired, all, forgotten) in [
        (0, 1, Ok(vec![])),
        (6, 7, Ok(vec![])),
        (7, 8, Ok(vec![1])),
        (1, 8, Ok(vec![1])),
        (0, 8, Err(NoRotation::TooMany)),
        (8, 9, Ok(vec![1, 2])),
    ] {
        assert_eq!(many(retired, all), forgotten, "{retired} of {all}");
    }
}

#[test]
fn a_register_that_was_put_back_learns_from_the_files() {
    let file = |number, has_key, was_in_force| CaFilesFound { number, has_key, was_in_force };
    for (retired, files, missing) in [
        (&[None][..], vec![file(1, true, true)], vec![]),
        // A rotation that a crash has ended: the same command goes on with it.
        (&[None], vec![file(1, true, true), file(2, true, false)], vec![]),
        // The register is older than the rotation.
        (&[None], vec![file(2, true, true), file(1, true, true)], vec![Add(2)]),
        (&[None], vec![file(1, false, true), file(2, true, true)], vec![Add(2), Retire(1)]),
        (
            &[None],
            vec![file(1, false, true), file(2, false, true), file(3, true, true)],
            vec![Add(2), Add(3), Retire(1), Retire(2)],
        ),
        // Older than the retirement.
        (&[None, None], vec![file(1, false, true), file(2, true, true)], vec![Retire(1)]),
        (&[Some(5), None], vec![file(1, false, true), file(2, true, true)], vec![]),
        // Older than the retirement of one that was forgotten since; and one that was lost.
        (
            &[None],
            (2..=9).map(|number| file(number, number == 9, true)).collect(),
            (2..=9).map(Add).chain((2..=8).map(Retire)).chain([Forget(1)]).collect(),
        ),
        (&[None, None], vec![file(2, true, true)], vec![]),
        // A lost key of the newest one is an error elsewhere, and nothing retires for it.
        (&[None], vec![file(1, false, true)], vec![]),
        (&[None], vec![file(1, true, true), file(2, false, true)], vec![]),
    ] {
        assert_eq!(records(retired).missing(&files), missing, "{retired:?} {files:?}");
    }
}
