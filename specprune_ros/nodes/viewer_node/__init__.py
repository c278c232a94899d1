"""``viewer_node``: a page in the browser that shows the arm and the policy, and steers them."""
