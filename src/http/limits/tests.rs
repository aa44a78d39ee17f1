//! Who gets how much.

use super::*;

const LARGEST: usize = 1 << 20;

fn limits() -> Arc<Limits> {
    Limits::new(u64::try_from(LARGEST).unwrap(), 800)
}

fn share(limits: &Arc<Limits>, last: u8) -> Arc<Share> {
    limits.share(Some(IpAddr::from([10, 0, 0, last])))
}

/// Requests until the address gets no more.
fn fill(share: &Arc<Share>) -> Vec<Working> {
    std::iter::from_fn(|| share.work().ok()).collect()
}

fn held(limits: &Limits) -> [usize; 3] {
    [Of::Requests, Of::SmallBytes, Of::LargeBytes].map(|what| limits.all.of(what).load(Ordering::Relaxed))
}

#[test]
fn an_address_holds_no_more_than_it_leaves_free() {
    let limits = limits();
    let mut all = vec![fill(&share(&limits, 0))];
    assert_eq!(all[0].len(), MAX_REQUESTS / 2, "one alone has half");
    all.push(fill(&share(&limits, 1)));
    assert_eq!(all[1].len(), MAX_REQUESTS / 4, "a second one finds room, and leaves some");
    // However many there are, the next finds as much as the one before left.
    for last in 2..8 {
        all.push(fill(&share(&limits, last)));
        assert_eq!(all.last().unwrap().len(), (MAX_REQUESTS - all[..all.len() - 1].iter().flatten().count()) / 2);
    }
    // Those that come to and fro share evenly.
    all.clear();
    let mut even: Vec<Vec<Working>> = (0..4).map(|_| Vec::new()).collect();
    for _ in 0..MAX_REQUESTS {
        for (last, own) in even.iter_mut().enumerate() {
            own.extend(share(&limits, u8::try_from(last).unwrap()).work().ok());
        }
    }
    assert!(even.iter().all(|own| own.len() == MAX_REQUESTS / 5), "{:?}", even.iter().map(Vec::len).collect::<Vec<_>>());
    drop(even);
    assert_eq!(held(&limits), [0; 3]);
}

#[test]
fn large_bodies_keep_out_neither_small_ones_nor_other_addresses() {
    let limits = limits();
    let slow = share(&limits, 0);
    let mut bodies: Vec<Received> = Vec::new();
    // Five that never end, in pieces, as large as they can.
    for _ in 0..5 {
        let mut body = slow.body();
        while body.len < LARGEST && body.grow(32 << 10).is_ok() {}
        bodies.push(body);
    }
    assert_eq!(held(&limits)[2], LARGEST * LARGEST_BODIES / 2);
    assert!(slow.answer(vec![0; SMALL_ANSWER + 1]).is_err());
    slow.body().grow(TINY_BODY).unwrap();
    slow.body().grow(SMALL_BODY).unwrap();
    let mut other = share(&limits, 1).body();
    other.grow(LARGEST).unwrap();
    drop((bodies, other));
    let answer = slow.answer(vec![0; SMALL_ANSWER + 1]).unwrap();
    assert_eq!(held(&limits), [0, 0, SMALL_ANSWER + 1]);
    drop(answer);
    assert_eq!(held(&limits), [0; 3]);
}

#[test]
fn small_bodies_that_do_not_end_keep_out_neither_tiny_ones_nor_other_addresses() {
    let limits = limits();
    let slow = share(&limits, 0);
    let mut bodies = Vec::new();
    let grown = |share: &Arc<Share>, size| {
        let mut body = share.body();
        body.grow(size).map(|()| body)
    };
    bodies.extend(std::iter::from_fn(|| grown(&slow, SMALL_BODY).ok()));
    assert_eq!(bodies.len(), MAX_SMALL / SMALL_BODY / 2);
    assert!(grown(&slow, TINY_BODY + 1).is_err());
    grown(&slow, TINY_BODY).unwrap();
    grown(&share(&limits, 1), SMALL_BODY).unwrap();
    // One that outgrows the small ones gives their bytes back.
    bodies[0].grow(1).unwrap();
    assert_eq!(held(&limits), [0, MAX_SMALL / 2 - SMALL_BODY, SMALL_BODY + 1]);
    drop(bodies);
    assert_eq!(held(&limits), [0; 3]);
}

#[test]
fn addresses_without_connections_are_forgotten() {
    let limits = limits();
    let kept = share(&limits, 0);
    let request = kept.work().unwrap();
    for last in 0..=255 {
        for third in 0..4 {
            limits.share(Some(IpAddr::from([10, 0, third, last])));
        }
    }
    assert!(limits.shares.lock().known.len() <= 64, "{}", limits.shares.lock().known.len());
    assert!(Arc::ptr_eq(&kept, &share(&limits, 0)), "it is in use");
    drop((kept, request));
    // A /64 counts as one, and so do all clients of unix sockets.
    let network = limits.share(Some("2001:db8::1".parse().unwrap()));
    assert!(Arc::ptr_eq(&network, &limits.share(Some("2001:db8::2".parse().unwrap()))));
    let unix = limits.share(None);
    assert!(Arc::ptr_eq(&unix, &limits.share(None)));
}

/// Connections until the address gets no more.
fn connections(share: &Arc<Share>, per_address: PerAddress) -> Vec<Connected> {
    std::iter::from_fn(|| share.connect(per_address)).collect()
}

#[test]
fn an_address_alone_has_nearly_all_connections_and_others_always_find_some() {
    let limits = limits();
    let mut all = vec![connections(&share(&limits, 0), PerAddress::Share)];
    assert_eq!(all[0].len(), 700);
    all.push(connections(&share(&limits, 1), PerAddress::Share));
    assert_eq!(all[1].len(), 87);
    assert!(!connections(&share(&limits, 2), PerAddress::Share).is_empty(), "a third one");
    // Those whose connections come and go end with as many each.
    for _ in 0..400 {
        for (last, own) in all.iter_mut().enumerate() {
            let kept = own.len() - own.len() / 10;
            own.truncate(kept);
            own.extend(connections(&share(&limits, u8::try_from(last).unwrap()), PerAddress::Share));
        }
    }
    let held: Vec<_> = all.iter().map(Vec::len).collect();
    assert!(held.iter().all(|held| (300..=400).contains(held)), "{held:?}");
    drop(all);
    assert_eq!(limits.all.of(Of::Connections).load(Ordering::Relaxed), 0);
}

#[test]
fn a_listener_may_set_how_many_connections_an_address_has() {
    let limits = limits();
    let (one, other) = (share(&limits, 0), share(&limits, 1));
    let some = connections(&one, PerAddress::Most(20));
    assert!(some.len() == 20 && !one.is_full());
    assert!(one.connect(PerAddress::Share).is_some(), "at another listener");
    let rest = connections(&other, PerAddress::Most(usize::MAX));
    assert_eq!(rest.len(), 780, "all that there are");
    assert!(one.is_full() && one.connect(PerAddress::Most(usize::MAX)).is_none());
}
