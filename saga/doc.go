// Package saga runs choreographed sagas: business transactions of several steps, each a
// transaction of its own in whatever service, driven by events, and undone by compensations
// when a step refuses.
//
//	var checkout = saga.New("checkout", saga.Config{Topic: Orders})
//
//	func init() {
//		saga.Step(checkout, "reserve", OrderPlaced, reserve, saga.StepConfig[Order]{Compensate: release, Within: time.Minute})
//		saga.Step(checkout, "confirm", MoneyCharged, confirm, saga.StepConfig[Charge]{Final: true})
//	}
//
//	func reserve(ctx context.Context, s *saga.Tx, e stream.Event, o Order) error {
//		tag, err := s.Exec(ctx, `UPDATE stock SET free = free - $2 WHERE item = $1 AND free >= $2`, o.Item, o.Count)
//		if err != nil {
//			return err // another attempt
//		}
//		if tag.RowsAffected() == 0 {
//			return saga.Refuse(errors.New("sold out")) // the saga is undone
//		}
//		return s.Emit(ctx, StockReserved.Event(o.ID, o))
//	}
//
//	handler, err := checkout.Handler(pool) // for a consumergroup.Consumer
//
// Each step commits in one transaction: that it ran, what it wrote, what it emitted. Events
// may come late, early, twice, in any order, and to any number of workers at once: each
// step has its effect once, or never where the saga was aborted first; and of an aborted
// saga exactly those steps are undone that were done, the last one first.
//
// The saga's id is the correlation id of its events, or the id of the event that starts it.
// An event that is published while another one is handled takes over that one's correlation
// id; where several sagas start in one conversation, [Start] gives each an id of its own.
package saga
