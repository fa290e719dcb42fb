package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// checkBolt walks the pages of a bbolt file, which nobody may have open. It finds
// what bbolt does not take well: bbolt panics, in a goroutine of its own, on pages
// that make no sense, and of its two meta pages it takes the one that is whole. If
// the newer one is damaged that silently undoes the last transaction, which was
// acknowledged. A meta page of 64 bytes lies in one sector, so a crash does not tear
// it: a damaged one is refused.
//
// The layout is that of bbolt's version 2, in internal/common/{meta,page}.go.
func checkBolt(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	c := boltCheck{file: f, pageSize: 4096, seen: make(map[uint64]bool)}
	first, err := c.meta(0)
	if err != nil {
		return err
	}
	c.pageSize = int64(first.pageSize)
	if c.pageSize < 512 || c.pageSize > 1<<20 {
		return fmt.Errorf("pages of %d bytes", c.pageSize)
	}
	second, err := c.meta(1)
	if err != nil {
		return err
	}
	now := first
	if second.txid > first.txid {
		now = second
	}
	if first.pageSize != second.pageSize || max(first.txid, second.txid)-min(first.txid, second.txid) != 1 {
		return fmt.Errorf("its two meta pages, of transactions %d and %d, do not belong together", first.txid, second.txid)
	}
	if int64(now.pages)*c.pageSize > info.Size() {
		return fmt.Errorf("it has %d bytes of the %d it should have", info.Size(), int64(now.pages)*c.pageSize)
	}
	c.pages = now.pages
	return c.tree(now.root, nil, nil)
}

type boltCheck struct {
	file     *os.File
	pageSize int64
	pages    uint64          // in use, free ones included
	seen     map[uint64]bool // pages reached
}

type boltMeta struct {
	pageSize          uint32
	root, pages, txid uint64
}

const (
	boltPageHeader = 16
	boltElement    = 16
	boltBranch     = 1
	boltLeaf       = 2
	boltMetaPage   = 4
	boltIsBucket   = 1 // flag of a leaf's element
)

func (c *boltCheck) meta(id int64) (boltMeta, error) {
	data := make([]byte, boltPageHeader+64)
	if _, err := c.file.ReadAt(data, id*c.pageSize); err != nil {
		return boltMeta{}, fmt.Errorf("meta page %d: %w", id, err)
	}
	m := data[boltPageHeader:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	if binary.LittleEndian.Uint32(m) != 0xED0CDAED || binary.LittleEndian.Uint32(m[4:]) != 2 ||
		binary.LittleEndian.Uint64(m[56:]) != sum.Sum64() || binary.LittleEndian.Uint16(data[8:]) != boltMetaPage {
		return boltMeta{}, fmt.Errorf("meta page %d makes no sense", id)
	}
	return boltMeta{
		pageSize: binary.LittleEndian.Uint32(m[8:]),
		root:     binary.LittleEndian.Uint64(m[16:]),
		pages:    binary.LittleEndian.Uint64(m[40:]),
		txid:     binary.LittleEndian.Uint64(m[48:]),
	}, nil
}

// tree walks the page id and all below it, whose keys lie in [from, to); nil is no
// bound.
func (c *boltCheck) tree(id uint64, from, to []byte) error {
	data, err := c.page(id)
	if err != nil {
		return err
	}
	if err := c.elements(data, from, to); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// page reads a page with its overflow.
func (c *boltCheck) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.pages {
		return nil, fmt.Errorf("page %d of %d", id, c.pages)
	}
	data := make([]byte, c.pageSize)
	if _, err := c.file.ReadAt(data, int64(id)*c.pageSize); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	overflow := uint64(binary.LittleEndian.Uint32(data[12:]))
	if have := binary.LittleEndian.Uint64(data); have != id {
		return nil, fmt.Errorf("page %d says that it is page %d", id, have)
	}
	if overflow >= c.pages-id {
		return nil, fmt.Errorf("page %d has %d more, of %d", id, overflow, c.pages)
	}
	for p := id; p <= id+overflow; p++ {
		if c.seen[p] {
			return nil, fmt.Errorf("page %d is in use twice", p)
		}
		c.seen[p] = true
	}
	if overflow == 0 {
		return data, nil
	}
	rest := io.NewSectionReader(c.file, int64(id+1)*c.pageSize, int64(overflow)*c.pageSize)
	buf := bytes.NewBuffer(make([]byte, 0, int64(overflow+1)*c.pageSize+bytes.MinRead))
	buf.Write(data)
	n, err := buf.ReadFrom(rest)
	if err == nil && n != int64(overflow)*c.pageSize {
		err = io.ErrUnexpectedEOF
	}
	return buf.Bytes(), err
}

func (c *boltCheck) elements(data, from, to []byte) error {
	flags, count := binary.LittleEndian.Uint16(data[8:]), int(binary.LittleEndian.Uint16(data[10:]))
	if flags != boltBranch && flags != boltLeaf || flags == boltBranch && count == 0 || boltPageHeader+count*boltElement > len(data) {
		return fmt.Errorf("kind %d with %d elements", flags, count)
	}
	type element struct {
		key, value []byte
		child      uint64
		bucket     bool
	}
	list := make([]element, count)
	for i := range list {
		at := boltPageHeader + i*boltElement
		e := data[at : at+boltElement]
		// Of a branch: position, key's length, page. Of a leaf: flags, position,
		// key's length, value's length.
		pos, ksize, vsize := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:]), uint32(0)
		if flags == boltLeaf {
			pos, ksize, vsize = binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
			list[i].bucket = binary.LittleEndian.Uint32(e)&boltIsBucket != 0
		} else {
			list[i].child = binary.LittleEndian.Uint64(e[8:])
		}
		begin := uint64(at) + uint64(pos)
		end := begin + uint64(ksize) + uint64(vsize)
		if end > uint64(len(data)) || ksize == 0 {
			return fmt.Errorf("element %d lies outside", i)
		}
		list[i].key, list[i].value = data[begin:begin+uint64(ksize)], data[begin+uint64(ksize):end]
	}
	for i, e := range list {
		if from != nil && bytes.Compare(e.key, from) < 0 || to != nil && bytes.Compare(e.key, to) >= 0 ||
			i > 0 && bytes.Compare(list[i-1].key, e.key) >= 0 {
			return errors.New("keys are out of order")
		}
		var err error
		switch {
		case flags == boltBranch && i+1 < len(list):
			err = c.tree(e.child, e.key, list[i+1].key)
		case flags == boltBranch:
			err = c.tree(e.child, e.key, to)
		case e.bucket:
			err = c.bucket(e.value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket walks a bucket, which may lie in its parent's page.
func (c *boltCheck) bucket(value []byte) error {
	if len(value) < 16 {
		return errors.New("a bucket is cut short")
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return c.tree(root, nil, nil)
	}
	if len(value) < 16+boltPageHeader {
		return errors.New("a bucket is cut short")
	}
	return c.elements(value[16:], nil, nil)
}
