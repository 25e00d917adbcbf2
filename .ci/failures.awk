# What the failed tests of a "go test" said, with -v or without, which is far above
# the end of the output where tests run in parallel: the last lines of each. A test
# may tell of another run's tests, as those of kernels do: these are deeper than they
# could be here, and what passed there is left out.

BEGIN { most = 40 }

/^=== / { name = $3; next }

/^ *--- (PASS|FAIL|SKIP): / {
	match($0, /-/)
	levels = $3
	if (RSTART - 1 == 4 * gsub("/", "", levels)) {
		name = $3
		if ($2 == "FAIL:")
			failed[++n] = name
		next
	}
}

/^(ok|FAIL|PASS|\?)/ { name = ""; next }

name != "" && NF > 0 && !/--- PASS: |=== / {
	said[name, ++lines[name]] = substr($0, 1, 300)
}

END {
	for (i = 1; i <= n; i++) {
		name = failed[i]
		if (lines[name] == 0)
			continue # its subtests tell
		print "FAILED " name
		for (j = lines[name] - most + 1; j <= lines[name]; j++)
			if (j > 0)
				print said[name, j]
	}
}
