// SPDX-License-Identifier: Apache-2.0
//
// main > run > (nine generic steps) > one of
//   <Sixty as Work>::work, called through a dyn pointer > hot_60
//   apply_30, generic over a closure > the closure > hot_30
//   sorted_10 > the standard library's sort > a comparing closure > hot_10
// and in each hot_N the calls inlined_outer > inlined_inner, which holds the loop.
//
// No crates, and nothing newer than Rust 1.63, Debian 12's.

use std::marker::PhantomData;

const CHUNK: u32 = 100_000;
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
const RUSAGE_SELF: i32 = 0;

#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

// struct rusage of 64-bit Linux: two timevals and 14 longs.
#[repr(C)]
struct Rusage {
    user: [i64; 2],
    system: [i64; 2],
    _rest: [i64; 14],
}

extern "C" {
    fn clock_gettime(clock: i32, t: *mut Timespec) -> i32;
    fn getrusage(who: i32, u: *mut Rusage) -> i32;
}

#[inline(always)]
fn cpu_ns() -> u64 {
    let mut t = Timespec { sec: 0, nsec: 0 };
    unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.sec as u64 * 1_000_000_000 + t.nsec as u64
}

// A value that the optimiser must take from memory, so that a call before it
// cannot become a jump.
#[inline(always)]
fn opaque(x: u64) -> u64 {
    unsafe { std::ptr::read_volatile(&x) }
}

#[inline(always)]
fn inlined_inner(mut x: u64) -> u64 {
    for _ in 0..CHUNK {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}

#[inline(always)]
fn inlined_outer(seed: u64, until_ns: u64) -> u64 {
    let mut x = 88172645463325252 + seed;
    loop {
        x = inlined_inner(x);
        if cpu_ns() >= until_ns {
            return x;
        }
    }
}

#[inline(never)]
fn hot_60(until_ns: u64) -> u64 {
    opaque(inlined_outer(60, until_ns))
}

#[inline(never)]
fn hot_30(until_ns: u64) -> u64 {
    opaque(inlined_outer(30, until_ns))
}

#[inline(never)]
fn hot_10(until_ns: u64) -> u64 {
    opaque(inlined_outer(10, until_ns))
}

trait Work {
    fn work(&self, until_ns: u64) -> u64;
}

struct Sixty(u64);
struct Other(u64);

impl Work for Sixty {
    #[inline(never)]
    fn work(&self, until_ns: u64) -> u64 {
        opaque(hot_60(until_ns)) + self.0
    }
}

impl Work for Other {
    #[inline(never)]
    fn work(&self, until_ns: u64) -> u64 {
        opaque(until_ns) * self.0
    }
}

#[inline(never)]
fn apply_30<F: Fn(u64) -> u64>(f: F, until_ns: u64) -> u64 {
    opaque(f(until_ns)) + 30
}

// Forty items make the library's sort a call of its own in every version; the
// first comparison uses up the turn.
#[inline(never)]
fn sorted_10(until_ns: u64) -> u64 {
    let mut items: Vec<u64> = (0..40).map(|i| opaque(i * 7919 % 41)).collect();
    let mut sum = 0u64;
    items.sort_by(|a, b| {
        if cpu_ns() < until_ns {
            sum = sum.wrapping_add(hot_10(until_ns));
        }
        a.cmp(b)
    });
    opaque(sum).wrapping_add(items[0])
}

struct Walk {
    branch: usize,
    until_ns: u64,
    workers: [Box<dyn Work>; 2],
}

trait Step {
    fn step(w: &Walk) -> u64;
}

struct Bottom;
struct Above<T>(PhantomData<T>);

impl Step for Bottom {
    #[inline(never)]
    fn step(w: &Walk) -> u64 {
        let r = match w.branch {
            0 => w.workers[opaque(0) as usize].work(w.until_ns),
            1 => {
                let extra = w.until_ns & 3;
                apply_30(|until| opaque(hot_30(until)).wrapping_add(extra), w.until_ns)
            }
            _ => sorted_10(w.until_ns),
        };
        opaque(r).wrapping_add(1)
    }
}

impl<T: Step> Step for Above<T> {
    #[inline(never)]
    fn step(w: &Walk) -> u64 {
        opaque(T::step(w)).wrapping_mul(5)
    }
}

type Top = Above<Above<Above<Above<Above<Above<Above<Above<Bottom>>>>>>>>;

#[inline(never)]
fn run(seconds: f64) -> ([u64; 3], u64) {
    let share = [0.6, 0.3, 0.1];
    let mut used = [0u64; 3];
    let mut planned = 0u64;
    let mut random = cpu_ns() | 1;
    let mut sum = 0u64;
    let mut w = Walk {
        branch: 0,
        until_ns: 0,
        workers: [Box::new(Sixty(1)), Box::new(Other(2))],
    };
    // Rounds of 400 to 600 ms of CPU time: see truth.h for why.
    while (planned as f64) < seconds * 1e9 {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        planned += 400_000_000 + (random >> 33) % 200_000_000;
        for branch in 0..3 {
            let start = cpu_ns();
            let due = planned as f64 * share[branch] - used[branch] as f64;
            w.branch = branch;
            w.until_ns = start + due.max(1e6) as u64;
            sum = sum.wrapping_add(Top::step(&w));
            used[branch] += cpu_ns() - start;
        }
    }
    (used, opaque(sum))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let mut seconds = 6.0;
    if args.len() == 3 && args[1] == "-seconds" {
        seconds = args[2].parse().expect("-seconds wants a number");
    }
    let (used, _) = run(seconds);
    let all: u64 = used.iter().sum();
    let mut u = Rusage {
        user: [0; 2],
        system: [0; 2],
        _rest: [0; 14],
    };
    unsafe { getrusage(RUSAGE_SELF, &mut u) };
    let cpu = (u.user[0] + u.system[0]) as f64 + (u.user[1] + u.system[1]) as f64 / 1e6;
    let of = |b: usize| used[b] as f64 / all as f64;
    println!(
        "{{\"cpu_seconds\":{:.6},\"shares\":{{\"hot_60\":{:.5},\"hot_30\":{:.5},\"hot_10\":{:.5}}}}}",
        cpu,
        of(0),
        of(1),
        of(2)
    );
}
