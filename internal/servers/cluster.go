package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const clusterSlots = 16384

// Cluster is a Redis Cluster of masters that StartCluster started.
type Cluster struct {
	nodes []*Redis
}

// StartCluster starts a Redis Cluster of n masters (3 if n is 0) that share the slots in equal, contiguous
// ranges. There are no replicas: a node that is killed takes its slots away, and brings them back with their
// data when it is started again. It returns once every node says that the cluster is whole; otherwise everything
// is as with StartRedis.
func StartCluster(ctx context.Context, n int) (*Cluster, error) {
	if n == 0 {
		n = 3
	}
	if n < 0 {
		return nil, fmt.Errorf("servers: a cluster of %d nodes", n)
	}
	if _, has := ctx.Deadline(); !has {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	c := &Cluster{}
	for range n {
		node, err := StartRedis(ctx, RedisConfig{Cluster: true, AppendOnly: true, Settings: map[string]string{
			"cluster-node-timeout": "2000",
		}})
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.nodes = append(c.nodes, node)
	}
	if err := c.join(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// join gives the nodes their slots, makes them known to the first one, and waits until all agree.
func (c *Cluster) join(ctx context.Context) error {
	for i, node := range c.nodes {
		err := withClient(node, func(rdb *redis.Client) error {
			first, next := i*clusterSlots/len(c.nodes), (i+1)*clusterSlots/len(c.nodes)
			// Distinct epochs spare the nodes the negotiation of whose slots are newer.
			if err := rdb.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
				return err
			}
			if err := rdb.ClusterAddSlotsRange(ctx, first, next-1).Err(); err != nil {
				return err
			}
			host, port, err := net.SplitHostPort(c.nodes[0].Addr())
			if err != nil || i == 0 {
				return err
			}
			return rdb.ClusterMeet(ctx, host, port).Err()
		})
		if err != nil {
			return fmt.Errorf("servers: join cluster: %w", err)
		}
	}
	for _, node := range c.nodes {
		if err := c.awaitWhole(ctx, node); err != nil {
			return fmt.Errorf("servers: join cluster: %w", err)
		}
	}
	return nil
}

// awaitWhole waits until a node knows all nodes and an owner for every slot.
func (c *Cluster) awaitWhole(ctx context.Context, node *Redis) error {
	return withClient(node, func(rdb *redis.Client) error {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			info, err := rdb.ClusterInfo(ctx).Result()
			if err != nil {
				return err
			}
			if infoHas(info, "cluster_state:ok") && infoHas(info, fmt.Sprintf("cluster_known_nodes:%d", len(c.nodes))) &&
				infoHas(info, fmt.Sprintf("cluster_size:%d", len(c.nodes))) {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w; node %s says:\n%s", context.Cause(ctx), node.Addr(), info)
			case <-tick.C:
			}
		}
	})
}

func infoHas(info, line string) bool { return strings.Contains(info, line+"\r\n") }

func withClient(node *Redis, use func(*redis.Client) error) error {
	rdb := redis.NewClient(&redis.Options{Addr: node.Addr()})
	return errors.Join(use(rdb), rdb.Close())
}

// Nodes returns the nodes, to kill, pause and start them one by one.
func (c *Cluster) Nodes() []*Redis { return slices.Clone(c.nodes) }

// Addrs returns the nodes' addresses, as redis.ClusterOptions takes them.
func (c *Cluster) Addrs() []string {
	addrs := make([]string, len(c.nodes))
	for i, node := range c.nodes {
		addrs[i] = node.Addr()
	}
	return addrs
}

// Close closes every node. A second call does nothing.
func (c *Cluster) Close() error {
	errs := make([]error, len(c.nodes))
	for i, node := range c.nodes {
		errs[i] = node.Close()
	}
	return errors.Join(errs...)
}
