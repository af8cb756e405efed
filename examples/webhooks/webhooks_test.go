package webhooks_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/examples/webhooks"
)

func TestDeliveriesAreTheRealOnes(t *testing.T) {
	t.Parallel()
	all, err := webhooks.Load()
	require.NoError(t, err)
	require.Len(t, all, 329)
	types, owners := map[string]bool{}, map[string]int{}
	for _, d := range all {
		s, err := d.Subject()
		require.NoError(t, err)
		types[d.EventType(s)] = true
		owners[s.Owner()]++
	}
	require.Len(t, types, 161)
	require.Equal(t, 230, owners["Codertocat/Hello-World"])
}
