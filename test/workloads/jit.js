// SPDX-License-Identifier: Apache-2.0
//
// (node) > run > level1 > level2 > level3 > hot60 | hot30 | hot10
//
// Run with --perf-basic-prof, so that node writes the names of the code it
// makes to /tmp/perf-PID.map, and with --interpreted-frames-native-stack, so
// that functions which are still interpreted have names of their own.
// --no-turbo-inlining keeps every function a frame: a perf map has no room
// for inlined calls.
'use strict';

const share = [0.6, 0.3, 0.1];
const used = [0, 0, 0];
const CHUNK = 200000;

function cpu() {
	const u = process.cpuUsage();
	return (u.user + u.system) / 1e6;
}

function hot60(x) {
	for (let i = 0; i < CHUNK; i++) {
		x ^= x << 13;
		x ^= x >>> 17;
		x ^= x << 5;
	}
	return x;
}

function hot30(x) {
	for (let i = 0; i < CHUNK; i++) {
		x ^= x << 5;
		x ^= x >>> 17;
		x ^= x << 13;
	}
	return x;
}

function hot10(x) {
	for (let i = 0; i < CHUNK; i++) {
		x ^= x << 7;
		x ^= x >>> 9;
		x ^= x << 8;
	}
	return x;
}

function level3(branch, until) {
	let x = 2463534242;
	do {
		if (branch === 0) x = hot60(x);
		else if (branch === 1) x = hot30(x);
		else x = hot10(x);
	} while (cpu() < until);
	return x;
}

function level2(branch, until) {
	return level3(branch, until) + 1;
}

function level1(branch, until) {
	return level2(branch, until) + 1;
}

function run(seconds) {
	let planned = 0;
	let sum = 0;
	// Rounds of 400 to 600 ms of CPU time: see truth.h for why.
	while (planned < seconds) {
		planned += 0.4 + Math.random() * 0.2;
		for (let b = 0; b < 3; b++) {
			const start = cpu();
			sum += level1(b, start + Math.max(0.001, planned * share[b] - used[b]));
			used[b] += cpu() - start;
		}
	}
	return sum;
}

const at = process.argv.indexOf('-seconds');
run(at > 0 ? Number(process.argv[at + 1]) : 6);
// Of all CPU time: node's own start and compiler take up to 5 % of a short run.
const truth = { cpu_seconds: cpu(), shares: {} };
[60, 30, 10].forEach((name, b) => {
	truth.shares['hot' + name] = used[b] / truth.cpu_seconds;
});
console.log(JSON.stringify(truth));
