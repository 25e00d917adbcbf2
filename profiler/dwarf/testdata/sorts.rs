use std::collections::{BTreeMap, HashMap};

mod sorts {
    pub trait Sorter {
        fn sort(&self, v: &mut Vec<u64>);
    }

    pub struct Merge;
    pub struct Insertion {
        pub limit: usize,
    }

    impl Sorter for Merge {
        fn sort(&self, v: &mut Vec<u64>) {
            if v.len() < 2 {
                return;
            }
            let mut right = v.split_off(v.len() / 2);
            self.sort(v);
            self.sort(&mut right);
            let mut out = Vec::with_capacity(v.len() + right.len());
            let (mut a, mut b) = (v.iter().peekable(), right.iter().peekable());
            loop {
                match (a.peek(), b.peek()) {
                    (Some(x), Some(y)) if x <= y => out.push(*a.next().unwrap()),
                    (_, Some(_)) => out.push(*b.next().unwrap()),
                    (Some(_), None) => out.push(*a.next().unwrap()),
                    (None, None) => break,
                }
            }
            *v = out;
        }
    }

    impl Sorter for Insertion {
        fn sort(&self, v: &mut Vec<u64>) {
            for i in 1..v.len().min(self.limit) {
                let mut j = i;
                while j > 0 && v[j - 1] > v[j] {
                    v.swap(j - 1, j);
                    j -= 1;
                }
            }
        }
    }
}

use sorts::Sorter;

fn main() {
    let n = std::env::args().count() as u64;
    let make = |seed: u64| -> Vec<u64> { (0..n * 500).map(|i| (i * 7919 + seed) % 1009).collect() };
    let sorters: Vec<Box<dyn Sorter>> = vec![Box::new(sorts::Merge), Box::new(sorts::Insertion { limit: 100 })];
    let mut seen: HashMap<u64, usize> = HashMap::new();
    let mut tree = BTreeMap::new();
    for (i, s) in sorters.iter().enumerate() {
        let mut v = make(i as u64);
        s.sort(&mut v);
        for x in v.iter().filter(|x| *x % 3 == 0) {
            *seen.entry(*x).or_insert(0) += 1;
            tree.insert(*x, i);
        }
    }
    let total: usize = seen.values().sum::<usize>() + tree.values().sum::<usize>();
    println!("{}", total);
}
