# What the failed tests of a "go test" said, with -v or without, which is far above
# the end of the output where tests run in parallel: the last lines of each.

BEGIN { most = 30 }

/^=== / { name = $3; next }

/^ *--- (PASS|FAIL|SKIP): / {
	name = $3
	if ($2 == "FAIL:")
		failed[++n] = name
	next
}

/^(ok|FAIL|PASS|\?)/ { name = ""; next }

name != "" && NF > 0 {
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
