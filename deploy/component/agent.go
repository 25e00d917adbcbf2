package component

func agent() Component {
	return Component{
		Name:       "agent",
		Title:      "kalypso-agent on every node: profiles of everything that runs there",
		Chart:      "kalypso-agent",
		Release:    "kalypso-agent",
		Namespace:  "kalypso",
		Needs:      []string{"pyroscope"},
		Privileged: true,
	}
}
