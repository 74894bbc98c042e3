package load

import (
	"fmt"
	"slices"
)

// Ledger remembers what one session sent to its conversation and what of it was acknowledged. A session sends one
// message after the other, so a ledger is not safe for concurrent use.
type Ledger struct {
	writer int
	// seqs[n] is the seq at which message n was acknowledged; 0: it was sent, and its outcome is not known.
	seqs []int64
}

// Send notes that the writer's next message is about to be sent, and returns its number.
func (l *Ledger) Send() int {
	l.seqs = append(l.seqs, 0)
	return len(l.seqs) - 1
}

// Acknowledge notes the seq that the server answered for message n.
func (l *Ledger) Acknowledge(n int, seq int64) { l.seqs[n] = seq }

// Acknowledged counts the messages that were.
func (l *Ledger) Acknowledged() (n int) {
	for _, seq := range l.seqs {
		if seq > 0 {
			n++
		}
	}
	return n
}

// Last is the highest seq acknowledged.
func (l *Ledger) Last() int64 {
	for _, seq := range slices.Backward(l.seqs) {
		if seq > 0 {
			return seq
		}
	}
	return 0
}

// Stored is a message as the server lists it.
type Stored struct {
	Seq  int64
	Text string
}

// Verify compares a conversation as listed with the ledgers of all who wrote to it: seqs without a gap, every
// acknowledged message exactly once at its seq, each writer's in the order sent, and nothing that nobody sent.
func Verify(listed []Stored, ledgers []*Ledger) error {
	byWriter := make(map[int]*Ledger, len(ledgers))
	found := make(map[int][]bool, len(ledgers))
	for _, l := range ledgers {
		byWriter[l.writer] = l
		found[l.writer] = make([]bool, len(l.seqs))
	}
	for i, m := range listed {
		if m.Seq != int64(i)+1 {
			return fmt.Errorf("seq %d follows seq %d", m.Seq, i)
		}
		s, ok := ParseStamp(m.Text)
		l := byWriter[s.Writer]
		switch {
		case !ok || l == nil || s.Number >= len(l.seqs):
			return fmt.Errorf("seq %d: nobody sent %q", m.Seq, m.Text)
		case found[s.Writer][s.Number]:
			return fmt.Errorf("seq %d: message %d of writer %d is there twice", m.Seq, s.Number, s.Writer)
		case l.seqs[s.Number] != 0 && l.seqs[s.Number] != m.Seq:
			return fmt.Errorf("seq %d: message %d of writer %d was acknowledged at seq %d", m.Seq, s.Number, s.Writer, l.seqs[s.Number])
		}
		found[s.Writer][s.Number] = true
	}
	for _, l := range ledgers {
		if err := l.complete(found[l.writer]); err != nil {
			return err
		}
	}
	return nil
}

// complete checks that all acknowledged messages were found, at seqs that rise in the order sent.
func (l *Ledger) complete(found []bool) error {
	last := int64(0)
	for n, seq := range l.seqs {
		switch {
		case seq == 0:
		case !found[n]:
			return fmt.Errorf("message %d of writer %d, acknowledged at seq %d, is missing", n, l.writer, seq)
		case seq <= last:
			return fmt.Errorf("message %d of writer %d has seq %d, after one with seq %d", n, l.writer, seq, last)
		default:
			last = seq
		}
	}
	return nil
}
